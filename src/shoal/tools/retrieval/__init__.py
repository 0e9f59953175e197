"""Which tools should an agent see? Documents of tools, searched by words and by meaning."""
