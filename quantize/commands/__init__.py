"""The command line of quantize: options are read here and nowhere below."""
