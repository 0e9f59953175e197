"""Setting one number by reports nobody gains by bending: facility location and its rivals."""
