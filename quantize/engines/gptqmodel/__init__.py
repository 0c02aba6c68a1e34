"""GPTQModel, the engine of GPTQ and AWQ."""
