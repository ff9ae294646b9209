{{/* What the pods have in common. */}}

{{/* The pod of a service. Takes (list $ "component"). */}}
{{- define "switchboard.pod" -}}
{{- $ := index . 0 -}}
{{- $component := index . 1 -}}
{{- $values := include "switchboard.podValues" (list $ $component) | fromJson -}}
{{- $preStopSeconds := default 0 $values.preStopSleepSeconds -}}
{{- $settings := include "switchboard.settings" $ | fromJson -}}
{{- $known := $.Files.Get "files/settings.json" | fromJson -}}
{{- /* One that brings others along ends before them, and they end together. */ -}}
{{- $drainMs := dict "first" 0 "others" 0 -}}
{{- range $service := include "switchboard.servicesOf" . | fromYamlArray -}}
{{- $own := dig $service "drain_ms" (dig (printf "%s.drain_ms" $service) "default" 0 $known) $settings | int64 -}}
{{- $when := ternary "first" "others" (eq $service $component) -}}
{{- $_ := set $drainMs $when (max $own (get $drainMs $when | int64)) -}}
{{- end -}}
{{- $drainMs = add $drainMs.first $drainMs.others -}}
metadata:
  labels:
    # None that a further version of the chart changes: these pods would start anew for it.
    {{- include "switchboard.selector" (list $ $component) | nindent 4 }}
    {{- with $values.podLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  annotations:
    # What it reads at its start alone.
    checksum/config: {{ include "switchboard.toml" (list $ $component false) | sha256sum }}
    {{- with $values.podAnnotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  {{- include "switchboard.podSecurity" (list $ $values) | nindent 2 }}
  {{- with $values.dnsConfig }}
  dnsConfig:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $values.priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
  # preStop, then drain_ms, then a reserve.
  terminationGracePeriodSeconds: {{ add $preStopSeconds (div (add $drainMs 999) 1000) 5 }}
  containers:
    - name: {{ $component }}
      {{- include "switchboard.container" (list $ $values) | nindent 6 }}
      command: [/usr/bin/switchboard-{{ ternary "node" $component (eq "true" (include "switchboard.isWhole" .)) }}, --config, /etc/switchboard/switchboard.toml]
      {{- include "switchboard.env" (list $ $component $values) | nindent 6 }}
      ports:
        {{- if eq $component "ingress" }}
        {{- include "switchboard.devicePorts" $ | nindent 8 }}
        {{- end }}
        {{- if eq $component "api" }}
        - name: api
          containerPort: 8081
        {{- end }}
        - name: admin
          containerPort: 9100
      startupProbe:
        httpGet: {path: /livez, port: admin}
        periodSeconds: 2
        failureThreshold: 30
      readinessProbe:
        httpGet: {path: /readyz, port: admin}
        periodSeconds: 5
        timeoutSeconds: 2
        failureThreshold: 2
      livenessProbe:
        httpGet: {path: /livez, port: admin}
        periodSeconds: 10
        timeoutSeconds: 5
      {{- if $preStopSeconds }}
      lifecycle:
        preStop:
          sleep: {seconds: {{ $preStopSeconds }}}
      {{- end }}
      resources:
        {{- include "switchboard.resources" (list $ $component) | nindent 8 }}
      volumeMounts:
        {{- include "switchboard.volumeMounts" (list $ $component $values) | nindent 8 }}
        {{- if and (eq $component "ingress") (include "switchboard.tls.enabled" $) }}
        - name: tls
          mountPath: /run/switchboard/tls
          readOnly: true
        {{- end }}
    {{- with $values.extraContainers }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  volumes:
    {{- include "switchboard.volumes" (list $ $component $values) | nindent 4 }}
    {{- if and (eq $component "ingress") (include "switchboard.tls.enabled" $) }}
    - name: tls
      secret:
        secretName: {{ include "switchboard.tls.secretName" $ }}
        defaultMode: 0440
    {{- end }}
  topologySpreadConstraints:
    {{- range $key, $when := dict "topology.kubernetes.io/zone" $.Values.topologySpread.zone "kubernetes.io/hostname" $.Values.topologySpread.node }}
    - topologyKey: {{ $key }}
      maxSkew: 1
      whenUnsatisfiable: {{ $when }}
      labelSelector:
        matchLabels:
          {{- include "switchboard.selector" (list $ $component) | nindent 10 }}
      # Each version of a rolling update is spread for itself.
      matchLabelKeys: [pod-template-hash]
    {{- end }}
  {{- with include "switchboard.placement" $values | trim }}
  {{- . | nindent 2 }}
  {{- end }}
{{- end -}}

{{/* What the pods of a service are told: by its own values, else by those of all. Takes (list $ "component"). */}}
{{- define "switchboard.podValues" -}}
{{- $ := index . 0 -}}
{{- mustMergeOverwrite (deepCopy $.Values.pods) (deepCopy (index $.Values (index . 1))) | toJson -}}
{{- end -}}

{{/* No rights, neither in the cluster nor on the node. Takes (list $ "pod's values"). */}}
{{- define "switchboard.podSecurity" -}}
{{- $ := index . 0 -}}
serviceAccountName: {{ include "switchboard.serviceAccountName" $ }}
automountServiceAccountToken: false
# No variables for each service of the namespace: settings are what the environment is for.
enableServiceLinks: false
securityContext:
  {{- toYaml (index . 1).podSecurityContext | nindent 2 }}
{{- with $.Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- end -}}

{{/* A container of Switchboard's image. Takes (list $ "pod's values"). */}}
{{- define "switchboard.container" -}}
{{- $ := index . 0 -}}
image: {{ include "switchboard.image" $ }}
imagePullPolicy: {{ $.Values.image.pullPolicy }}
securityContext:
  {{- toYaml (index . 1).securityContext | nindent 2 }}
{{- end -}}

{{/* `env` of a container. Takes (list $ "user's role" "pod's values"). */}}
{{- define "switchboard.env" -}}
{{- $env := include "switchboard.natsEnv" . | fromYamlArray -}}
{{- with concat $env (index . 2).extraEnv -}}
env:
  {{- toYaml . | nindent 2 }}
{{- end -}}
{{- end -}}

{{/* Who this is to NATS, by password, as YAML. Takes (list $ "user's role"). An API that keeps the registry is `admin`. */}}
{{- define "switchboard.natsEnv" -}}
{{- $ := index . 0 -}}
{{- $keeps := and (eq (index . 1) "api") (dig "api" "administration" false $.Values.config) -}}
{{- $role := ternary "admin" (index . 1) $keeps -}}
{{- if include "switchboard.isWhole" . -}}
{{- /* Its file of settings says so. */ -}}
{{- else if not $.Values.nats.credentialsSecret -}}
{{- with include "switchboard.nats.passwordsSecret" $ -}}
- name: SWITCHBOARD_NATS__USER
  value: {{ ternary $role (index $.Values.nats.users $role) $.Values.nats.enabled }}
{{- with include "switchboard.nats.storeUser" (list $ $role) }}
- name: SWITCHBOARD_NATS__STORE_USER
  value: {{ . }}
{{- end }}
- name: SWITCHBOARD_NATS__PASSWORD
  valueFrom:
    secretKeyRef:
      name: {{ . }}
      key: {{ $role }}
{{- if eq $role "identity" }}
- name: SWITCHBOARD_IDENTITY__JOIN_SECRET
  valueFrom:
    secretKeyRef:
      name: {{ . }}
      key: ingress
- name: SWITCHBOARD_IDENTITY__ISSUER_SEED
  valueFrom:
    secretKeyRef:
      name: {{ required "identity.issuerSecret is missing: what the identity service signs with." $.Values.identity.issuerSecret }}
      key: issuer-seed
{{- end }}
{{- else }}
{{- if $.Values.identity.enabled }}
{{- fail "identity.enabled is for NATS users with passwords: nats.passwordsSecret is missing." }}
{{- end }}
{{- end -}}
{{- else if $.Values.identity.enabled -}}
{{- fail "identity.enabled is for NATS users with passwords, not with nats.credentialsSecret." }}
{{- end -}}
{{- end -}}

{{/* The Secret whose files say who this is to NATS, if files do. Takes (list $ "user's role"). */}}
{{- define "switchboard.nats.filesSecret" -}}
{{- $ := index . 0 -}}
{{- if $.Values.nats.credentialsSecret -}}
{{- $.Values.nats.credentialsSecret -}}
{{- else if include "switchboard.isWhole" . -}}
{{- include "switchboard.nats.passwordsSecret" $ -}}
{{- end -}}
{{- end -}}

{{/* Takes (list $ "user's role" "pod's values"). */}}
{{- define "switchboard.volumeMounts" -}}
{{- $ := index . 0 -}}
- name: config
  mountPath: /etc/switchboard
  readOnly: true
{{- if include "switchboard.nats.filesSecret" . }}
- name: nats
  mountPath: /run/switchboard/nats
  readOnly: true
{{- end }}
{{- if $.Values.nats.tlsSecret }}
- name: nats-tls
  mountPath: /run/switchboard/nats-tls
  readOnly: true
{{- end }}
{{- with (index . 2).extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Takes (list $ "user's role" "pod's values"): the operator's commands need what the authorizer reads. */}}
{{- define "switchboard.volumes" -}}
{{- $ := index . 0 -}}
{{- $role := index . 1 -}}
- name: config
  configMap:
    name: {{ include "switchboard.fullname" $ }}-{{ ternary "authorizer" $role (eq $role "operator") }}
{{- $isWhole := include "switchboard.isWhole" . }}
{{- $services := include "switchboard.servicesOf" . | fromYamlArray }}
{{- $suffix := ternary ".creds" "" (not (empty $.Values.nats.credentialsSecret)) }}
{{- with include "switchboard.nats.filesSecret" . }}
- name: nats
  secret:
    secretName: {{ . }}
    defaultMode: 0440
    items:
      {{- range $services }}
      - key: {{ . }}{{ $suffix }}
        path: {{ ternary (printf "%s%s" . $suffix) "nats.creds" (eq "true" $isWhole) }}
      {{- end }}
{{- end }}
{{- with $.Values.nats.tlsSecret }}
- name: nats-tls
  secret:
    secretName: {{ . }}
    defaultMode: 0440
    items:
      - key: ca.crt
        path: ca.crt
{{- end }}
{{- with (index . 2).extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Where a pod may run. Takes the values of its component. */}}
{{- define "switchboard.placement" -}}
{{- with .nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}
