# What Salt itself takes for as many states.
{% for index in range(12) %}
Nothing {{ index }}:
  test.nop
{% endfor %}
