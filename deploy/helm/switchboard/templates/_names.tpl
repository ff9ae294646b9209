{{/* What things are called, and which labels they have. */}}

{{- define "switchboard.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Labels that select: of a release, or with a component, of its pods. Takes (list $ "component"). */}}
{{- define "switchboard.selector" -}}
{{- $ := index . 0 -}}
app.kubernetes.io/name: {{ default $.Chart.Name $.Values.nameOverride }}
app.kubernetes.io/instance: {{ $.Release.Name }}
{{- with index . 1 }}
app.kubernetes.io/component: {{ . }}
{{- end }}
{{- end -}}

{{/* All labels. Takes (list $ "component"). */}}
{{- define "switchboard.labels" -}}
{{- $ := index . 0 -}}
{{ include "switchboard.selector" . }}
app.kubernetes.io/version: {{ $.Chart.AppVersion | quote }}
app.kubernetes.io/part-of: switchboard
app.kubernetes.io/managed-by: {{ $.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $.Chart.Name $.Chart.Version | replace "+" "_" }}
{{- end -}}

{{/* metadata of an object. Takes (list $ "suffix of its name" "component"), and behind that, if need be, a dict with
further `labels` and `annotations`. */}}
{{- define "switchboard.metadata" -}}
{{- $ := index . 0 -}}
{{- $suffix := index . 1 -}}
{{- $further := dict -}}
{{- if gt (len .) 3 -}}
{{- $further = index . 3 -}}
{{- end -}}
name: {{ include "switchboard.fullname" $ }}{{ with $suffix }}-{{ . }}{{ end }}
namespace: {{ $.Release.Namespace }}
{{- with merge dict (default dict $further.annotations) $.Values.commonAnnotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
labels:
  {{- include "switchboard.labels" (list $ (index . 2)) | fromYaml | merge dict | mergeOverwrite (merge dict (default dict $further.labels) $.Values.commonLabels) | toYaml | nindent 2 }}
{{- end -}}

{{/* The services, as YAML. */}}
{{- define "switchboard.components" -}}
[ingress{{ if ne .Values.topology "together" }}, authorizer, router{{ end }}{{ if .Values.api.enabled }}, api{{ end }}{{ if .Values.identity.enabled }}, identity{{ end }}]
{{- end -}}

{{/* The services in a component's processes, as YAML. Takes (list $ "component"). */}}
{{- define "switchboard.servicesOf" -}}
{{- if and (eq (index . 1) "ingress") (eq (index . 0).Values.topology "together") -}}
[ingress, authorizer, router]
{{- else -}}
[{{ index . 1 }}]
{{- end -}}
{{- end -}}

{{/* Whether they are several. Takes (list $ "component"). */}}
{{- define "switchboard.isWhole" -}}
{{- if gt (len (include "switchboard.servicesOf" . | fromYamlArray)) 1 }}true{{ end -}}
{{- end -}}

{{- define "switchboard.serviceAccountName" -}}
{{- if .Values.serviceAccount.name -}}
{{- .Values.serviceAccount.name -}}
{{- else if .Values.serviceAccount.create -}}
{{- include "switchboard.fullname" . -}}
{{- else -}}
default
{{- end -}}
{{- end -}}

{{/* An image's full name. Takes an `image` of the values. */}}
{{- define "switchboard.imageName" -}}
{{- if .digest -}}
{{ .repository }}@{{ .digest }}
{{- else -}}
{{ .repository }}:{{ .tag }}
{{- end -}}
{{- end -}}

{{- define "switchboard.image" -}}
{{- $_ := required "image.repository is missing: where the image is that `./taskw image` builds." .Values.image.repository -}}
{{- include "switchboard.imageName" (merge (dict "tag" (default .Chart.AppVersion .Values.image.tag)) .Values.image) -}}
{{- end -}}

{{- define "switchboard.tls.enabled" -}}
{{- if or .Values.tls.secretName .Values.tls.certManager.enabled }}true{{ end -}}
{{- end -}}

{{- define "switchboard.tls.secretName" -}}
{{- default (printf "%s-tls" (include "switchboard.fullname" .)) .Values.tls.secretName -}}
{{- end -}}

{{- define "switchboard.nats.passwordsSecret" -}}
{{- if .Values.nats.passwordsSecret -}}
{{- .Values.nats.passwordsSecret -}}
{{- else if .Values.nats.enabled -}}
{{- include "switchboard.fullname" . }}-nats-users
{{- end -}}
{{- end -}}

{{/* Who a role is to NATS where JetStream is, if it may use it. Takes (list $ "user's role"). */}}
{{- define "switchboard.nats.storeUser" -}}
{{- $ := index . 0 -}}
{{- $own := dict "authorizer" "authorizer-store" "router" "router-store" "api" "api" "admin" "admin" "operator" "operator" -}}
{{- get (ternary $own $.Values.nats.storeUsers $.Values.nats.enabled) (index . 1) -}}
{{- end -}}

{{/* Who each service of a process with several is to NATS, as JSON: the same settings for all. */}}
{{- define "switchboard.nats.ofEach" -}}
{{- $nats := dict -}}
{{- if .Values.nats.credentialsSecret -}}
{{- $_ := set $nats "credentials_file" "/run/switchboard/nats/{service}.creds" -}}
{{- else if include "switchboard.nats.passwordsSecret" . -}}
{{- $_ := set $nats "user" "{service}" -}}
{{- $_ := set $nats "password_file" "/run/switchboard/nats/{service}" -}}
{{- $stores := list -}}
{{- range $role := list "ingress" "authorizer" "router" -}}
{{- if not (or $.Values.nats.enabled (eq $role (index $.Values.nats.users $role))) -}}
{{- fail (printf "topology is together, and nats.users.%s is not %s: in one process each user is named as its service." $role $role) -}}
{{- end -}}
{{- if ne $role "ingress" -}}
{{- $stores = append $stores (include "switchboard.nats.storeUser" (list $ $role)) -}}
{{- end -}}
{{- end -}}
{{- if eq (join "," $stores) "authorizer-store,router-store" -}}
{{- $_ := set $nats "store_user" "{service}-store" -}}
{{- else if ne (join "," $stores) "," -}}
{{- fail "topology is together, and nats.storeUsers are neither authorizer-store and router-store nor empty." -}}
{{- end -}}
{{- end -}}
{{- toJson $nats -}}
{{- end -}}

{{- define "switchboard.nats.url" -}}
{{- if .Values.nats.enabled -}}
{{- $nats := printf "%s-nats" (include "switchboard.fullname" .) -}}
{{- $urls := list -}}
{{- range until 3 -}}
{{- $urls = append $urls (printf "nats://%s-%d.%s:4222" $nats . $nats) -}}
{{- end -}}
{{- join "," $urls -}}
{{- else -}}
{{- required "nats.url is missing: where is NATS? Or set nats.enabled to try things out with one of this chart's." .Values.nats.url -}}
{{- end -}}
{{- end -}}

{{/* Are there devices for `helm test`, and a port for them to use? Its name, or nothing. */}}
{{- define "switchboard.test.port" -}}
{{- if or .Values.test.devicesSecret .Values.demo.enabled -}}
{{- $offered := include "switchboard.tcpPorts" . | fromYamlArray -}}
{{- if has "http" $offered -}}http{{- else if has "https" $offered -}}https{{- end -}}
{{- end -}}
{{- end -}}
