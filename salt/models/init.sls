{#- The model files of site.yaml, where a service reads them. A generated model is part of its
    image. -#}
include:
  - checked
{%- if not salt['llm_config.check']() %}
{%- set platform = salt['llm_config.platform']() %}
{%- set site, carried = platform.site, salt['llm_config.carried']() %}
{%- if platform.services.values() | selectattr('models') | selectattr('name', 'in', carried) | list %}

The folder of models exists:
  file.directory:
    - name: {{ site.root }}/models
    - mode: '0755'
    - makedirs: True
{%- for name, model in site.models.items() if model.file is defined %}

The model {{ name }} is here:
  llm_model.present:
    - name: {{ name }}
    {%- for key in ('url', 'path', 'sha256') if key in model %}
    - {{ key }}: {{ model[key] | json }}
    {%- endfor %}
    - require:
      - file: The folder of models exists
{%- endfor %}
{%- endif %}
{%- endif %}
