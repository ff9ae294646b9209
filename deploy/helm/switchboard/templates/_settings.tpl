{{/* switchboard.toml: `config` of the values, and what the chart sets itself. */}}
{{- define "switchboard.toml" -}}
{{- $listen := .Values.listenAddress -}}
{{- $chart := dict
  "nats" (dict "url" (include "switchboard.nats.url" .))
  "mqtt" (dict "listen" (printf "%s:1883" $listen) "tls_listen" (printf "%s:8883" $listen))
  "http" (dict "listen" (printf "%s:8080" $listen) "tls_listen" (printf "%s:8443" $listen))
  "coap" (dict "listen" (printf "%s:5683" $listen))
  "admin" (dict "listen" (printf "%s:9100" $listen))
-}}
{{- if .Values.nats.credentialsSecret -}}
{{- $_ := set $chart.nats "credentials_file" "/run/switchboard/nats/nats.creds" -}}
{{- end -}}
{{- if .Values.nats.tlsSecret -}}
{{- $_ := set $chart.nats "tls_ca_file" "/run/switchboard/nats-tls/ca.crt" -}}
{{- end -}}
{{- if include "switchboard.tls.enabled" . -}}
{{- $_ := set $chart "tls" (dict "certificate_file" "/run/switchboard/tls/tls.crt" "key_file" "/run/switchboard/tls/tls.key") -}}
{{- end -}}
{{- range $section, $settings := mustMergeOverwrite (deepCopy .Values.config) $chart -}}
[{{ $section }}]
{{- range $setting, $value := $settings }}
{{ $setting }} = {{ include "switchboard.toml.value" $value }}
{{- end }}

{{ end -}}
{{- end -}}

{{/* Helm takes every number for a float; the settings are whole numbers but for those with a fraction. */}}
{{- define "switchboard.toml.value" -}}
{{- if not (or (kindIs "float64" .) (kindIs "int64" .) (kindIs "int" .)) -}}
{{- toJson . -}}
{{- else if eq (float64 .) (floor .) -}}
{{- int64 . -}}
{{- else -}}
{{- . -}}
{{- end -}}
{{- end -}}
