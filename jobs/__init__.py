"""Job files: models x recipes x evaluations x benchmarks x report, each step a process of its own, resumable.

``load`` reads the strict YAML (``spec``), ``plan`` lists the steps, whose kinds are the classes of ``steps``;
``estimate`` says beforehand what they cost. ``runner`` does what ``keys`` does not find done already, by way
of an ``executor``: processes ``here``, or tasks ``on_ray``. ``commands`` stand on top.
"""
