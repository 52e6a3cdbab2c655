{% from 'service.jinja' import absent with context %}
{{ absent('tail') }}
