{% from 'service.jinja' import absent with context %}
{{ absent('model-proxy') }}
