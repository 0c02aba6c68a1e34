"""Job files: models x recipes x evaluations x benchmarks x report, each step in its own process, resumable.

``load`` reads the strict YAML (``spec``), ``plan`` lists the steps, whose kinds are the classes of ``steps``;
``estimate`` says in advance what they cost. ``runner`` does what ``keys`` does not find done already, by way
of an ``executor``: processes ``here``, or tasks ``on_ray``. ``commands`` are on top.
"""
