"""Chat templates of every kind that models have, written for the tests: name -> template."""

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
#: each can be said in Go
EXPRESSIBLE = {
    "chatml": CHATML,
    "default system": (
        "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are a helpful model.<|im_end|>\n{% endif %}"
        + CHATML
    ),
    "trimmed, BOS": (
        "{{ bos_token }}{% for m in messages %}<|h|>{{ m.role }}<|/h|>\n\n{{ m.content | trim }}<|eot|>{% endfor %}"
        "{% if add_generation_prompt %}<|h|>assistant<|/h|>\n\n{% endif %}"
    ),
    "system inside the first turn": (
        "{{ bos_token }}{% if messages[0].role == 'system' %}{% set first = messages[0].content + '\\n\\n' %}"
        "{% set loop_messages = messages[1:] %}{% else %}{% set first = '' %}{% set loop_messages = messages %}"
        "{% endif %}{% for m in loop_messages %}"
        "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles must alternate') }}{% endif %}"
        "<turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ first if loop.first else '' }}{{ m.content | trim }}"
        "</turn>\n{% endfor %}{% if add_generation_prompt %}<turn>model\n{% endif %}"
    ),
    "no system allowed": (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
        "[{{ m.role }}]{{ m.content }}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
    ),
    "bracketed, all of a turn trimmed": (
        "{% if messages[0].role == 'system' %}{% set system = '<<SYS>>\\n' + messages[0].content + '\\n<</SYS>>\\n\\n' %}"
        "{% set rest = messages[1:] %}{% else %}{% set system = '' %}{% set rest = messages %}{% endif %}"
        "{% for m in rest %}{% set said = system + m.content if loop.first else m.content %}"
        "{% if m.role == 'user' %}{{ bos_token + '[INST] ' + said.strip() + ' [/INST]' }}"
        "{% elif m.role == 'assistant' %}{{ ' ' + said.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
    ),
    "system in the last turn": (
        "{% if messages[0].role == 'system' %}{% set system = messages[0].content %}{% set rest = messages[1:] %}"
        "{% else %}{% set rest = messages %}{% endif %}{{ bos_token }}{% for m in rest %}{% if m.role == 'user' %}"
        "{% if loop.last and system is defined %}[INST] {{ system + '\\n\\n' + m.content }}[/INST]"
        "{% else %}[INST] {{ m.content }}[/INST]{% endif %}{% elif m.role == 'assistant' %} {{ m.content }}{{ eos_token }}"
        "{% endif %}{% endfor %}"
    ),
    "system messages joined at the front": (
        "{% set ns = namespace(text='', first=true) %}{% for m in messages %}{% if m.role == 'system' %}"
        "{% set ns.text = ns.text + (m.content if ns.first else '\\n\\n' + m.content) %}{% set ns.first = false %}"
        "{% endif %}{% endfor %}{{ bos_token }}{{ ns.text }}{% for m in messages %}{% if m.role == 'user' %}"
        "<U>{{ m.content }}{% elif m.role == 'assistant' %}<A>{{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<A>{% endif %}"
    ),
    "an empty system message is none": (
        "{% if messages[0].role == 'system' and messages[0].content %}SYSTEM: {{ messages[0].content }}\n"
        "{% else %}SYSTEM: default\n{% endif %}{% for m in messages %}{% if m.role != 'system' %}"
        "{{ m.role | upper }}: {{ m.content }}\n{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
    ),
    "reasoning before a last answer": (
        "{% for m in messages %}<|{{ m.role }}|>{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n"
        "{{ m.content.lstrip('\\n') }}{% else %}{{ m.content }}{% endif %}<|end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
    ),
    "what looks like Go and like a Modelfile": (
        '{{ \'{{ .Prompt }} {{- "x" -}} """ \\\\ \\u0007\\u00a0\\r\\n\' }}{% for m in messages %}'
        "{{ '-{' + m.role + '}}\"\"\"' }}{{ m.content }}{{ '\"' }}{% endfor %}{% if add_generation_prompt %}{{ '{{' }}{% endif %}"
    ),
}
#: what cannot be, and a word of what is said about it
INEXPRESSIBLE = {
    "upper case": (
        "{% for m in messages %}{{ m.role }}: {{ m.content | upper }}\n{% endfor %}",
        "appears 0 times",
    ),
    "numbered turns": (
        "{% for m in messages %}{{ loop.index }}. {{ m.content }}\n{% endfor %}",
        "depends on more than",
    ),
    "said twice": ("{% for m in messages %}{{ m.content }}|{{ m.content }}\n{% endfor %}", "appears 2 times"),
    "length of content": (
        "{% for m in messages %}[{{ m.role }}{{ '!' if m.content == '' }}]{{ m.content }}{% endfor %}",
        "empty content",
    ),
    "the date": (
        "{{ strftime_now('%d %b %Y') }}\n{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}",
        "the date",
    ),
}
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
