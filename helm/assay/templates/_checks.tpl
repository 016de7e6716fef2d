{{/* What the schema cannot say: values that contradict each other. Each message says what to do. */}}
{{- define "assay.checks" -}}
{{- $v := .Values -}}
{{- $several := include "assay.severalPods" . -}}
{{- if not (regexMatch "^[a-z][-a-z0-9]*$" (include "assay.fullname" .)) -}}
{{- fail (printf "a service's name has letters, digits and -, and begins with a letter; %s does not: set fullnameOverride" (include "assay.fullname" .)) -}}
{{- end -}}
{{- if or (hasSuffix ":latest" (include "assay.image" (list $v.image .Chart.AppVersion))) (eq $v.models.download.image.tag "latest") -}}
{{- fail "image.tag is `latest`: name a version, or a digest" -}}
{{- end -}}
{{- range $v.extraEnv -}}
{{- if regexMatch "^ASSAY_(LISTEN|(GRPC|HTTP|HEALTH|ADMIN)_PORT|ADMIN|ADMIN_LISTEN|TLS_[A-Z_]+|AUTH_TOKENS)$" .name -}}
{{- fail (printf "extraEnv: %s would not fit the services and probes: set it by the chart's own value" .name) -}}
{{- end -}}
{{- end -}}
{{- $models := $v.models -}}
{{- if and (eq $models.source "pvc") (not $models.pvc.existingClaim) -}}
{{- fail "models.source is pvc: set models.pvc.existingClaim" -}}
{{- end -}}
{{- if and (eq $models.source "download") (not $models.download.files) -}}
{{- fail "models.source is download: set models.download.files" -}}
{{- end -}}
{{- if and (eq $models.source "image") (not $models.image.reference) -}}
{{- fail "models.source is image: set models.image.reference" -}}
{{- end -}}
{{- if and (eq $models.source "image") (semverCompare "<1.33.0-0" .Capabilities.KubeVersion.Version) -}}
{{- fail (printf "models.source is image: image volumes need Kubernetes 1.33, this is %s" .Capabilities.KubeVersion.Version) -}}
{{- end -}}
{{- if and (eq $models.source "hostPath") (not $models.hostPath.path) -}}
{{- fail "models.source is hostPath: set models.hostPath.path" -}}
{{- end -}}
{{- $cache := $v.artifactCache -}}
{{- if and (eq $cache.type "pvc") $several (eq $cache.pvc.accessMode "ReadWriteOncePod") -}}
{{- fail "artifactCache.pvc.accessMode is ReadWriteOncePod and there may be several pods: use ReadWriteMany" -}}
{{- end -}}
{{- if and (eq $cache.type "pvc") $several (eq $cache.pvc.accessMode "ReadWriteOnce") (not $cache.sharedOnOneNode) -}}
{{- fail "artifactCache.pvc.accessMode is ReadWriteOnce and there may be several pods: use ReadWriteMany, or set artifactCache.sharedOnOneNode" -}}
{{- end -}}
{{- if and (eq $cache.type "pvc") (gt (int $v.strategy.maxSurge) 0) (or (eq $cache.pvc.accessMode "ReadWriteOncePod") (and (eq $cache.pvc.accessMode "ReadWriteOnce") (not $cache.sharedOnOneNode))) -}}
{{- fail (printf "artifactCache.pvc.accessMode is %s: the new pod of a rollout would wait for the old one's claim forever: set strategy.maxSurge to 0 and strategy.maxUnavailable to 1" $cache.pvc.accessMode) -}}
{{- end -}}
{{- if $cache.quantizeOnce.enabled -}}
{{- if ne $cache.type "pvc" -}}
{{- fail "artifactCache.quantizeOnce needs a cache that pods share: set artifactCache.type to pvc" -}}
{{- end -}}
{{- if or (eq $models.source "none") (not $cache.quantizeOnce.models) -}}
{{- fail "artifactCache.quantizeOnce needs models: set models.source and artifactCache.quantizeOnce.models" -}}
{{- end -}}
{{- range $v.extraEnv -}}
{{- if regexMatch "^ASSAY_(POLICY|EVALUATION_TEXT|CALIBRATION|THREADS|MEMORY_LIMIT|GPU_[A-Z_]+|CACHE_DIR|MODEL_REPOSITORY)$" .name -}}
{{- fail (printf "artifactCache.quantizeOnce: %s in extraEnv is for the server alone, `assay quantize` would quantize without it: set it by config or its own value" .name) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- $tls := $v.tls -}}
{{- if and $tls.enabled (not $tls.certManager.enabled) (not $tls.existingSecret) -}}
{{- fail "tls.enabled needs a certificate: set tls.existingSecret or tls.certManager.enabled" -}}
{{- end -}}
{{- if and $tls.certManager.enabled $tls.existingSecret -}}
{{- fail "tls.existingSecret and tls.certManager.enabled are both set: choose one" -}}
{{- end -}}
{{- if and $tls.certManager.enabled (not $tls.certManager.issuerRef.name) -}}
{{- fail "tls.certManager.enabled needs an issuer: set tls.certManager.issuerRef.name" -}}
{{- end -}}
{{- if and (not $tls.enabled) (or $tls.mutual.enabled $tls.certManager.enabled) -}}
{{- fail "tls.mutual or tls.certManager is enabled without tls.enabled" -}}
{{- end -}}
{{- if and $tls.mutual.enabled (not $tls.mutual.caSecret) -}}
{{- fail "tls.mutual.enabled needs the clients' authority: set tls.mutual.caSecret" -}}
{{- end -}}
{{- if and (ne $v.service.type "ClusterIP") (not $tls.enabled) (not $v.service.allowPlaintext) -}}
{{- fail (printf "service.type is %s without TLS: set tls.enabled, or service.allowPlaintext" $v.service.type) -}}
{{- end -}}
{{- if and (ne $v.service.type "ClusterIP") $v.networkPolicy.enabled (not (contains "ipBlock" (toJson $v.networkPolicy.clients))) -}}
{{- fail (printf "service.type is %s and networkPolicy.clients lets pods in alone: add {ipBlock: {cidr: ...}}, of the clients with service.externalTrafficPolicy Local, else of the nodes" $v.service.type) -}}
{{- end -}}
{{- if $tls.certManager.enabled -}}
{{- $life := include "assay.milliseconds" $tls.certManager.duration | int64 -}}
{{- $before := include "assay.milliseconds" $tls.certManager.renewBefore | int64 -}}
{{- if or (lt $life 3600000) (lt $before 300000) (ge $before $life) -}}
{{- fail (printf "tls.certManager.duration is %s and renewBefore %s: cert-manager takes at least 1h and 5m, the second below the first" $tls.certManager.duration $tls.certManager.renewBefore) -}}
{{- end -}}
{{- end -}}
{{- $monitor := $v.metrics.serviceMonitor -}}
{{- if gt (include "assay.milliseconds" $monitor.scrapeTimeout | int64) (include "assay.milliseconds" $monitor.interval | int64) -}}
{{- fail (printf "metrics.serviceMonitor.scrapeTimeout %s is above interval %s" $monitor.scrapeTimeout $monitor.interval) -}}
{{- end -}}
{{- if and $monitor.enabled $tls.enabled (not $monitor.tlsConfig) -}}
{{- fail "tls.enabled is about /metrics too: set metrics.serviceMonitor.tlsConfig" -}}
{{- end -}}
{{- if and $monitor.enabled $tls.mutual.enabled (not (and (hasKey $monitor.tlsConfig "cert") (hasKey $monitor.tlsConfig "keySecret"))) -}}
{{- fail "tls.mutual.enabled is about /metrics too: set cert and keySecret in metrics.serviceMonitor.tlsConfig" -}}
{{- end -}}
{{- if and $monitor.enabled $v.auth.existingSecret (not $monitor.bearerSecret.name) -}}
{{- fail "auth.existingSecret is about /metrics too: set metrics.serviceMonitor.bearerSecret.name" -}}
{{- end -}}
{{- if and (ne $v.autoscaling.kind "none") (lt (int $v.autoscaling.maxReplicas) (int $v.autoscaling.minReplicas)) -}}
{{- fail "autoscaling.maxReplicas is below autoscaling.minReplicas" -}}
{{- end -}}
{{- if and (eq $v.autoscaling.kind "keda") (not $v.autoscaling.keda.prometheusAddress) -}}
{{- fail "autoscaling.kind is keda: set autoscaling.keda.prometheusAddress" -}}
{{- end -}}
{{- if and (eq (int $v.strategy.maxSurge) 0) (eq (int $v.strategy.maxUnavailable) 0) -}}
{{- fail "strategy.maxSurge and strategy.maxUnavailable are both 0: a rollout could never begin" -}}
{{- end -}}
{{- if and $v.grpcRoute.enabled (not $v.grpcRoute.parentRefs) -}}
{{- fail "grpcRoute.enabled needs a gateway: set grpcRoute.parentRefs" -}}
{{- end -}}
{{- $ports := list $v.network.grpcPort $v.network.httpPort $v.network.healthPort -}}
{{- if $v.admin.enabled -}}{{- $ports = append $ports $v.network.adminPort -}}{{- end -}}
{{- if ne (len $ports) (len (uniq $ports)) -}}
{{- fail "two of network.grpcPort, httpPort, adminPort and healthPort are the same" -}}
{{- end -}}
{{- end -}}

{{/* Of a duration in Go's words, such as 1h30m. */}}
{{- define "assay.milliseconds" -}}
{{- $sum := 0 -}}
{{- range regexFindAll "[0-9]+(ms|s|m|h)" . -1 -}}
{{- $unit := get (dict "ms" 1 "s" 1000 "m" 60000 "h" 3600000) (regexFind "[a-z]+$" .) -}}
{{- $sum = add $sum (mul (regexFind "^[0-9]+" . | int64) $unit) -}}
{{- end -}}
{{- $sum -}}
{{- end -}}
