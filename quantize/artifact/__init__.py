"""What a conversion leaves: the manifest, hashes of files, and whose word its verification is."""
