{{/* Which settings there are, what they are set to, and whose they are. */}}

{{/* `config` of the values, and what the chart sets itself, as JSON: section to settings. */}}
{{- define "switchboard.settings" -}}
{{- $listen := .Values.listenAddress -}}
{{- $computed := dict "ingress" (dict "drain_ms" (include "switchboard.ingressDrainMs" . | int64)) -}}
{{- $limits := include "switchboard.deviceLimits" . | fromJson -}}
{{- $chart := dict
  "nats" (dict "url" (include "switchboard.nats.url" .))
  "mqtt" (dict "listen" (printf "%s:1883" $listen) "tls_listen" (printf "%s:8883" $listen))
  "http" (dict "listen" (printf "%s:8080" $listen) "tls_listen" (printf "%s:8443" $listen))
  "coap" (dict "listen" (printf "%s:5683" $listen))
  "api" (dict "listen" (printf "%s:8081" $listen))
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
{{- mustMergeOverwrite $computed $limits (deepCopy .Values.config) $chart | toJson -}}
{{- end -}}

{{/* switchboard.toml with what a service reads of them. Takes (list $ "service" whether those too that are taken over
while it runs). */}}
{{- define "switchboard.toml" -}}
{{- $ := index . 0 -}}
{{- $service := index . 1 -}}
{{- $all := index . 2 -}}
{{- $known := $.Files.Get "files/settings.json" | fromJson -}}
{{- $services := include "switchboard.servicesOf" (list $ $service) | fromYamlArray -}}
{{- $given := include "switchboard.settings" $ | fromJson -}}
{{- if include "switchboard.isWhole" (list $ $service) -}}
{{- $_ := mustMergeOverwrite $given (dict "nats" (include "switchboard.nats.ofEach" $ | fromJson)) -}}
{{- end -}}
{{- range $section, $settings := $given -}}
{{- $lines := list -}}
{{- range $setting, $value := $settings -}}
{{- $it := get $known (printf "%s.%s" $section $setting) -}}
{{- $isRead := false -}}
{{- range $services -}}
{{- $isRead = or $isRead (has . $it.readers) -}}
{{- end -}}
{{- if and $isRead (or $all (not $it.reloaded)) -}}
{{- $lines = append $lines (printf "%s = %s" $setting (include "switchboard.toml.value" $value)) -}}
{{- end -}}
{{- end -}}
{{- with $lines -}}
[{{ $section }}]
{{ join "\n" . }}

{{ end -}}
{{- end -}}
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
