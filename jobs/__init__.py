"""Job files: models x recipes x evaluations x benchmarks x report, each step a process of its own, resumable.

``load`` reads the strict YAML, ``steps`` lists what there is to do, ``keys`` says when a step is done
already, ``runner`` does the rest, ``estimate`` says beforehand what it costs.
"""
