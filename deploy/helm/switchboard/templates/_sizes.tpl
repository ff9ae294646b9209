{{/* What do the pods need for `expectedDevices`? From the figures of deploy/scaling.md, rounded up. */}}

{{/* Devices that an ingress pod has to hold: what it is scaled at, or its part when one of the pods is away. */}}
{{- define "switchboard.devicesPerPod" -}}
{{- with .Values.ingress.autoscaling -}}
{{- if and .enabled .sessionsPerPod -}}
{{- .sessionsPerPod | int64 -}}
{{- else -}}
{{- $pods := ternary .minReplicas $.Values.ingress.replicas (or .enabled (kindIs "invalid" $.Values.ingress.replicas)) -}}
{{- divf $.Values.expectedDevices (max 1 (sub $pods 1)) | ceil | int64 -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Milliseconds in which an ingress pod sends its devices away, in the first half, no faster than at
`ingress.shed_per_second`, and calls end. */}}
{{- define "switchboard.ingressDrainMs" -}}
{{- $default := dig "ingress.shed_per_second" "default" 500 (.Files.Get "files/settings.json" | fromJson) -}}
{{- $perSecond := dig "ingress" "shed_per_second" $default .Values.config -}}
{{- divf (mulf (include "switchboard.devicesPerPod" .) 2000) $perSecond | ceil | int64 | max 10000 | min 600000 -}}
{{- end -}}

{{/* Limits of an ingress pod that its devices, with a quarter of them to spare, would reach, as JSON: section to settings. */}}
{{- define "switchboard.deviceLimits" -}}
{{- $known := .Files.Get "files/settings.json" | fromJson -}}
{{- $devices := mulf (include "switchboard.devicesPerPod" .) 1.25 | ceil | int64 | min 10000000 -}}
{{- $limits := dict -}}
{{- range list "ingress.max_connections" "http.max_sessions" "coap.max_sessions" "coap.max_observers" -}}
{{- /* 0 is 100,000 connections. */ -}}
{{- if gt $devices (dig . "default" 0 $known | default 100000 | int64) -}}
{{- $path := splitList "." . -}}
{{- $limits = mustMergeOverwrite $limits (dict (first $path) (dict (last $path) $devices)) -}}
{{- end -}}
{{- end -}}
{{- toJson $limits -}}
{{- end -}}

{{/* `resources` of a service, with the memory that they leave open. Takes (list $ "service"). */}}
{{- define "switchboard.resources" -}}
{{- $ := index . 0 -}}
{{- $service := index . 1 -}}
{{- $bytes := dict
  "ingress" (mulf (include "switchboard.devicesPerPod" $) (ternary 11000 3400 (eq "true" (include "switchboard.tls.enabled" $))))
  "authorizer" (mulf $.Values.expectedDevices 300)
  "router" (mulf $.Values.expectedDevices 400)
-}}
{{- $all := 0 -}}
{{- range include "switchboard.servicesOf" . | fromYamlArray -}}
{{- $all = addf $all (get $bytes . | default 0) -}}
{{- end -}}
{{- $mebibytes := divf $all 1048576 | ceil | add 128 -}}
{{- $memory := dict
  "requests" (dict "memory" (printf "%dMi" $mebibytes))
  "limits" (dict "memory" (printf "%dMi" (mul 2 $mebibytes)))
-}}
{{- mustMergeOverwrite $memory (deepCopy (index $.Values $service).resources) | toYaml -}}
{{- end -}}
