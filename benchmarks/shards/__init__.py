"""What MoS is measured on: quality at equal parameters, and many adapters served at once."""
