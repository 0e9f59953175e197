"""Parts of the claim of KVCOMM: caches of texts that agents pass on."""
