{% from 'service.jinja' import absent with context %}
{{ absent('head') }}
