"""Adapters: small updates of a frozen model, one protocol for every kind (see ``adapter``)."""
