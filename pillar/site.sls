{%- from 'names.jinja' import names %}
{%- from 'catalogue.jinja' import site, services with context %}
{%- set carried = (site.hosts | default({})).get(opts.id) or {} %}
# What site.yaml says, and what it makes of this minion.
llm:
  site: {{ site | json }}
  host: {{ opts.id | json }}
  roles: {{ carried.get('roles', []) | json }}
  {%- if carried %}
  names:                        # in its certificates
  {%- for name, service in services.items() if service.certificate %}
    {{ name }}: {{ names(site, opts.id, name, service) }}
  {%- endfor %}
  {%- endif %}
{%- if carried %}

# Certificates renew themselves between deploys too. All hosts ask the authority, not all at once.
schedule:
  certificates:
    function: llm_certificate.renew_due
    hours: 6                    # often enough for certificates of two days
    splay: 600                  # seconds
    return_job: False
{%- endif %}
