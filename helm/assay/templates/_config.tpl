{{/* The server's config.yaml: what the chart sets, and .Values.config, whose schema has none of these keys. */}}
{{- define "assay.config" -}}
{{- $v := .Values -}}
{{- $config := dict
  "listen" $v.network.listen "grpc_port" $v.network.grpcPort "http_port" $v.network.httpPort "health_port" $v.network.healthPort
  "admin" false "admin_listen" "127.0.0.1" "admin_port" (ternary $v.network.adminPort -1 $v.admin.enabled)
  "cache_dir" "/cache" "strict_readiness" $v.models.strictReadiness
  "drain_timeout" (printf "%ds" (int $v.drain.timeoutSeconds)) -}}
{{- if ne $v.models.source "none" -}}{{- $_ := set $config "model_repository" "/models" -}}{{- end -}}
{{- if $v.policy -}}{{- $_ := set $config "policy" "/etc/assay/policy.yaml" -}}{{- end -}}
{{- if $v.tls.enabled -}}
{{- $tls := dict "certificate" "/etc/assay-tls/tls.crt" "key" "/etc/assay-tls/tls.key" "reload_interval" $v.tls.reloadInterval -}}
{{- if $v.tls.mutual.enabled -}}{{- $_ := set $tls "client_ca" (printf "/etc/assay-client-ca/%s" $v.tls.mutual.caKey) -}}{{- end -}}
{{- $_ := set $config "tls" $tls -}}
{{- end -}}
{{- $auth := dict "max_concurrent" (int64 $v.auth.maxConcurrent) "tokens_per_minute" (int64 $v.auth.tokensPerMinute) -}}
{{- if $v.auth.existingSecret -}}{{- $_ := set $auth "tokens" (printf "/etc/assay-auth/%s" $v.auth.key) -}}{{- end -}}
{{- $_ := set $config "auth" $auth -}}
{{- toYaml (merge $config $v.config) -}}
{{- end -}}
