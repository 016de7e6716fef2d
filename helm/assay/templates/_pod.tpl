{{/* Parts of the pod. */}}

{{- define "assay.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}

{{/* Resources of the server and of what quantizes in its stead. */}}
{{- define "assay.resources" -}}
{{- $resources := deepCopy .Values.resources -}}
{{- if eq .Values.profile "gpu" -}}
{{- $limits := default dict $resources.limits -}}
{{- $_ := set $limits .Values.gpu.resourceName .Values.gpu.count -}}
{{- $_ := set $resources "limits" $limits -}}
{{- end -}}
{{- toYaml $resources -}}
{{- end -}}

{{/* The profile's node selector terms are added to each term that the user has. */}}
{{- define "assay.affinity" -}}
{{- $v := .Values -}}
{{- $wanted := list -}}
{{- range $v.cpu.features -}}
{{- $wanted = append $wanted (dict "key" (printf "feature.node.kubernetes.io/cpu-cpuid.%s" .) "operator" "In" "values" (list "true")) -}}
{{- end -}}
{{- if eq $v.profile "gpu" -}}
{{- if gt (int $v.gpu.minComputeMajor) 0 -}}
{{- $wanted = append $wanted (dict "key" "nvidia.com/gpu.compute.major" "operator" "Gt" "values" (list (sub (int $v.gpu.minComputeMajor) 1 | toString))) -}}
{{- end -}}
{{- if $v.gpu.products -}}
{{- $wanted = append $wanted (dict "key" "nvidia.com/gpu.product" "operator" "In" "values" $v.gpu.products) -}}
{{- end -}}
{{- end -}}
{{- $affinity := deepCopy $v.affinity -}}
{{- if $wanted -}}
{{- $node := default dict $affinity.nodeAffinity -}}
{{- $required := default dict $node.requiredDuringSchedulingIgnoredDuringExecution -}}
{{- $terms := list -}}
{{- range default (list dict) $required.nodeSelectorTerms -}}
{{- $terms = append $terms (merge (dict "matchExpressions" (concat $wanted (default list .matchExpressions))) .) -}}
{{- end -}}
{{- $_ := set $node "requiredDuringSchedulingIgnoredDuringExecution" (dict "nodeSelectorTerms" $terms) -}}
{{- $_ := set $affinity "nodeAffinity" $node -}}
{{- end -}}
{{- if $affinity -}}{{- toYaml $affinity -}}{{- end -}}
{{- end -}}

{{- define "assay.modelMount" -}}
name: models
mountPath: /models
{{- if and (eq .Values.models.source "pvc") .Values.models.pvc.subPath }}
subPath: {{ .Values.models.pvc.subPath | quote }}
{{- end }}
{{- end -}}

{{- define "assay.modelVolume" -}}
{{- $models := .Values.models -}}
name: models
{{- if eq $models.source "pvc" }}
persistentVolumeClaim: {claimName: {{ $models.pvc.existingClaim | quote }}, readOnly: true}
{{- else if eq $models.source "image" }}
image: {reference: {{ $models.image.reference | quote }}, pullPolicy: {{ $models.image.pullPolicy }}}
{{- else if eq $models.source "hostPath" }}
hostPath: {path: {{ $models.hostPath.path | quote }}, type: Directory}
{{- else if $models.download.existingClaim }}
persistentVolumeClaim: {claimName: {{ $models.download.existingClaim | quote }}}
{{- else }}
emptyDir: {sizeLimit: {{ $models.download.sizeLimit }}}
{{- end }}
{{- end -}}

{{/* A file appears under its name only when it is whole and has its checksum: pods may share the folder. */}}
{{- define "assay.downloadScript" -}}
set -eu
take() {
  if [ -f "$3" ] && echo "$2  $3" | sha256sum -c - >/dev/null 2>&1; then echo "have $3"; return; fi
  mkdir -p "$(dirname "$3")"
  part="$3.part.$(hostname)"
  {{- if .Values.models.download.headerSecret.name }}
  curl --fail --location --retry 5 --no-progress-meter --header @/etc/download/header --output "$part" "$1"
  {{- else }}
  curl --fail --location --retry 5 --no-progress-meter --output "$part" "$1"
  {{- end }}
  echo "$2  $part" | sha256sum -c - >/dev/null 2>&1 || { rm -f "$part"; echo "wrong sha256: $1" >&2; exit 1; }
  mv "$part" "$3"
  echo "took $3"
}
{{- range .Values.models.download.files }}
take {{ .url | squote }} {{ .sha256 | squote }} {{ printf "/models/%s" .path | squote }}
{{- end }}
{{- end -}}

{{- define "assay.initContainers" -}}
{{- $root := . -}}
{{- $v := .Values -}}
{{- if eq $v.models.source "download" }}
- name: download
  image: {{ include "assay.image" (list $v.models.download.image $v.models.download.image.tag) | quote }}
  imagePullPolicy: {{ $v.image.pullPolicy }}
  command: [sh, -c]
  args:
    - |
      {{- include "assay.downloadScript" . | nindent 6 }}
  securityContext:
    {{- include "assay.containerSecurity" . | nindent 4 }}
  resources:
    {{- toYaml $v.models.download.resources | nindent 4 }}
  volumeMounts:
    - {name: models, mountPath: /models}
    - {name: tmp, mountPath: /tmp}
    {{- if $v.models.download.headerSecret.name }}
    - {name: download-header, mountPath: /etc/download, readOnly: true}
    {{- end }}
{{- end }}
{{- if $v.artifactCache.quantizeOnce.enabled }}
{{- range $index, $model := $v.artifactCache.quantizeOnce.models }}
- name: quantize-{{ $index }}
  image: {{ include "assay.image" (list $v.image $root.Chart.AppVersion) | quote }}
  imagePullPolicy: {{ $v.image.pullPolicy }}
  command: {{ concat $v.artifactCache.quantizeOnce.lockCommand (list "/cache/.quantize.lock" "assay" "quantize" (printf "/models/%s" $model) "--output" "/cache") | toJson }}
  {{- /* What the server would use: else its key in the cache is another one. */}}
  {{- $flags := list }}
  {{- if $v.policy }}{{ $flags = concat $flags (list "--policy" "/etc/assay/policy.yaml") }}{{ end }}
  {{- with $v.config.evaluation_text }}{{ $flags = concat $flags (list "--evaluation" .) }}{{ end }}
  {{- with $v.config.calibration }}{{ $flags = concat $flags (list "--calibration" .) }}{{ end }}
  {{- with $v.config.threads }}{{ $flags = concat $flags (list "--threads" (toString .)) }}{{ end }}
  {{- with $v.config.memory_limit }}{{ if regexMatch "[1-9]" (toString .) }}{{ $flags = concat $flags (list "--memory-limit" .) }}{{ end }}{{ end }}
  {{- with $v.config.gpu }}
  {{- with .devices }}{{ $flags = concat $flags (list "--gpu-devices" .) }}{{ end }}
  {{- with .profile }}{{ $flags = concat $flags (list "--gpu-profile" .) }}{{ end }}
  {{- with .kv_cache }}{{ if regexMatch "[1-9]" (toString .) }}{{ $flags = concat $flags (list "--gpu-kv-cache" .) }}{{ end }}{{ end }}
  {{- end }}
  {{- with $flags }}
  args: {{ toJson . }}
  {{- end }}
  env:
    - {name: HOME, value: /tmp}
    {{- with $v.extraEnv }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  securityContext:
    {{- include "assay.containerSecurity" $root | nindent 4 }}
  resources:
    {{- include "assay.resources" $root | nindent 4 }}
  volumeMounts:
    - {name: config, mountPath: /etc/assay, readOnly: true}
    - {name: cache, mountPath: /cache}
    - {name: tmp, mountPath: /tmp}
    - {{ include "assay.modelMount" $root | nindent 6 | trim }}
      readOnly: true
    {{- with $v.extraVolumeMounts }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "assay.volumes" -}}
{{- $v := .Values -}}
- name: config
  configMap: {name: {{ include "assay.fullname" . }}}
- name: tmp
  emptyDir: {sizeLimit: 1Gi}
- name: cache
  {{- if eq $v.artifactCache.type "pvc" }}
  persistentVolumeClaim: {claimName: {{ include "assay.cacheClaimName" . }}}
  {{- else }}
  emptyDir: {sizeLimit: {{ $v.artifactCache.sizeLimit }}}
  {{- end }}
{{- if ne $v.models.source "none" }}
- {{ include "assay.modelVolume" . | nindent 2 | trim }}
{{- end }}
{{- if and (eq $v.models.source "download") $v.models.download.headerSecret.name }}
- name: download-header
  secret:
    secretName: {{ $v.models.download.headerSecret.name }}
    defaultMode: 288
    items: [{key: {{ $v.models.download.headerSecret.key | quote }}, path: header}]
{{- end }}
{{- if $v.tls.enabled }}
- name: tls
  secret: {secretName: {{ include "assay.tlsSecretName" . }}, defaultMode: 288}
{{- if $v.tls.mutual.enabled }}
- name: client-ca
  secret:
    secretName: {{ $v.tls.mutual.caSecret }}
    defaultMode: 288
    items: [{key: {{ $v.tls.mutual.caKey | quote }}, path: {{ $v.tls.mutual.caKey | quote }}}]
{{- end }}
{{- end }}
{{- if $v.auth.existingSecret }}
- name: auth
  secret:
    secretName: {{ $v.auth.existingSecret }}
    defaultMode: 288
    items: [{key: {{ $v.auth.key | quote }}, path: {{ $v.auth.key | quote }}}]
{{- end }}
{{- with $v.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "assay.mounts" -}}
{{- $v := .Values -}}
- {name: config, mountPath: /etc/assay, readOnly: true}
- {name: cache, mountPath: /cache}
- {name: tmp, mountPath: /tmp}
{{- if ne $v.models.source "none" }}
- {{ include "assay.modelMount" . | nindent 2 | trim }}
  readOnly: true
{{- end }}
{{- if $v.tls.enabled }}
- {name: tls, mountPath: /etc/assay-tls, readOnly: true}
{{- if $v.tls.mutual.enabled }}
- {name: client-ca, mountPath: /etc/assay-client-ca, readOnly: true}
{{- end }}
{{- end }}
{{- if $v.auth.existingSecret }}
- {name: auth, mountPath: /etc/assay-auth, readOnly: true}
{{- end }}
{{- with $v.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end -}}
