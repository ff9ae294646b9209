{{/* Where devices are listened to. */}}

{{/* Names of the TCP ports that devices are offered, as YAML. */}}
{{- define "switchboard.tcpPorts" -}}
{{- $names := list -}}
{{- range $name, $port := .Values.ingress.service.ports -}}
{{- if and $port (or (include "switchboard.tls.enabled" $) (not (has $name (list "mqtts" "https")))) -}}
{{- $names = append $names $name -}}
{{- end -}}
{{- end -}}
{{- toYaml $names -}}
{{- end -}}

{{/* Names of the ports that are in plain text and can be reached from outside of the cluster, as YAML. What a Gateway
takes for MQTT and HTTP may be TLS that ends there. */}}
{{- define "switchboard.plainOutside" -}}
{{- $names := list -}}
{{- $byGateway := and .Values.gateway.enabled .Values.gateway.listeners.coap -}}
{{- with .Values.ingress.coapService -}}
{{- if or .hostPort (and .enabled (or $byGateway (ne .type "ClusterIP"))) -}}
{{- $names = append $names "coap" -}}
{{- end -}}
{{- end -}}
{{- if ne .Values.ingress.service.type "ClusterIP" -}}
{{- range include "switchboard.tcpPorts" . | fromYamlArray -}}
{{- if has . (list "mqtt" "http") -}}
{{- $names = append $names . -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- toYaml $names -}}
{{- end -}}

{{/* Port that an ingress pod listens on. Takes its name. */}}
{{- define "switchboard.containerPort" -}}
{{- index (dict "mqtt" 1883 "mqtts" 8883 "http" 8080 "https" 8443 "coap" 5683) . -}}
{{- end -}}

{{/* `ports` of an ingress pod. */}}
{{- define "switchboard.devicePorts" -}}
- name: coap
  containerPort: {{ include "switchboard.containerPort" "coap" }}
  {{- with .Values.ingress.coapService.hostPort }}
  hostPort: {{ . }}
  {{- end }}
  protocol: UDP
{{- range ternary (list "mqtt" "mqtts" "http" "https") (list "mqtt" "http") (eq "true" (include "switchboard.tls.enabled" .)) }}
- name: {{ . }}
  containerPort: {{ include "switchboard.containerPort" . }}
{{- end }}
{{- end -}}
