{{/* Names, labels, images. */}}

{{- define "assay.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{/* At most 40 characters, so that the longest suffix keeps names below 63. */}}
{{- define "assay.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains (include "assay.name" .) .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "assay.name" .) | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* Immutable in a Deployment: nothing here may change between versions of the chart. */}}
{{- define "assay.selector" -}}
app.kubernetes.io/name: {{ include "assay.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: server
{{- end -}}

{{/* list ROOT COMPONENT */}}
{{- define "assay.labels" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: {{ include "assay.name" $root }}
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/part-of: assay
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{- with $root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* list ROOT COMPONENT SUFFIX: the metadata of an object in the release's namespace. */}}
{{- define "assay.metadata" -}}
{{- $root := index . 0 -}}
name: {{ include "assay.fullname" $root }}{{ index . 2 }}
namespace: {{ $root.Release.Namespace }}
labels:
  {{- include "assay.labels" (list $root (index . 1)) | nindent 2 }}
{{- end -}}

{{- define "assay.serviceAccountName" -}}
{{- if .Values.serviceAccount.name -}}
{{- .Values.serviceAccount.name -}}
{{- else if .Values.serviceAccount.create -}}
{{- include "assay.fullname" . -}}
{{- else -}}
default
{{- end -}}
{{- end -}}

{{/* list IMAGE DEFAULT-TAG */}}
{{- define "assay.image" -}}
{{- $image := index . 0 -}}
{{- $name := $image.repository -}}
{{- if $image.registry -}}{{- $name = printf "%s/%s" (trimSuffix "/" $image.registry) $name -}}{{- end -}}
{{- if $image.digest -}}
{{- printf "%s@%s" $name $image.digest -}}
{{- else -}}
{{- printf "%s:%s" $name (default (index . 1) $image.tag) -}}
{{- end -}}
{{- end -}}

{{- define "assay.tlsSecretName" -}}
{{- if .Values.tls.certManager.enabled -}}
{{- include "assay.fullname" . }}-tls
{{- else -}}
{{- .Values.tls.existingSecret -}}
{{- end -}}
{{- end -}}

{{- define "assay.cacheClaimName" -}}
{{- default (printf "%s-cache" (include "assay.fullname" .)) .Values.artifactCache.pvc.existingClaim -}}
{{- end -}}

{{/* "true" where there may be more than one pod. */}}
{{- define "assay.severalPods" -}}
{{- if ne .Values.autoscaling.kind "none" -}}
{{- if gt (int .Values.autoscaling.maxReplicas) 1 -}}true{{- end -}}
{{- else if gt (int .Values.replicas) 1 -}}true
{{- end -}}
{{- end -}}
