"""Importers: one file a format, each turns a description of an interface into ToolSpecs."""
