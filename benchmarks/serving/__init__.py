"""Parts of the server's benchmark: servers, a plain client, rough clients."""
