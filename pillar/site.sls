{%- from 'names.jinja' import names %}
{%- import_yaml 'site.yaml' as site %}
{%- import_yaml 'services.sls' as catalogue %}
{%- set carried = (site.hosts | default({})).get(opts.id) or {} %}
# What site.yaml says, and what it makes of this minion.
llm:
  site: {{ site | json }}
  host: {{ opts.id | json }}
  roles: {{ carried.get('roles', []) | json }}
  {%- if carried %}
  names:                        # in its certificates
  {%- for name, service in catalogue.llm.services.items() if service.certificate is defined %}
    {{ name }}: {{ names(site, opts.id, name, service) }}
  {%- endfor %}
  {%- endif %}
