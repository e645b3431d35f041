{{- define "vllm.fullname" -}}
{{- if contains "vllm" .Release.Name -}}
{{- .Release.Name | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-vllm" .Release.Name | trunc 52 | trimSuffix "-" -}}
{{- end -}}
{{- end }}

{{- define "vllm.selector" -}}
app.kubernetes.io/name: vllm
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "vllm.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{ include "vllm.selector" . }}
app.kubernetes.io/part-of: mmar-jobs
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{/* Reference of an image: (list image defaultTag). */}}
{{- define "vllm.image" -}}
{{- $image := index . 0 -}}
{{- printf "%s:%s" $image.repository ($image.tag | default (index . 1)) -}}
{{- with $image.digest }}@{{ . }}{{ end -}}
{{- end }}

{{/* Options of `vllm serve` that follow from the GPUs, as a YAML list; fails where none are known. */}}
{{- define "vllm.preset" -}}
{{- $tp := int .Values.tensorParallel -}}
{{- range .Values.engine.extraArgs -}}
{{- if or (hasPrefix "--tensor-parallel-size" .) (hasPrefix "-tp" .) (hasPrefix "--port" .) -}}
{{- fail (printf "engine.extraArgs: %s would contradict tensorParallel or the Service: set servers and tensorParallel" .) -}}
{{- end -}}
{{- end -}}
{{- if eq .Values.engine.preset "none" -}}
{{- list "--tensor-parallel-size" (toString $tp) | toYaml -}}
{{- else -}}
{{- $known := .Files.Get "files/serve-args.json" | fromJson -}}
{{- $key := printf "%dGiB-tp%d" (int .Values.gpuMemoryGib) $tp -}}
{{- if not (hasKey $known $key) -}}
{{- fail (printf "the model does not fit %d GPUs of %d GiB, or they are unknown: gpuMemoryGib and tensorParallel must be one of %s, or set engine.preset=none and engine.extraArgs" $tp (int .Values.gpuMemoryGib) (keys $known | sortAlpha | join ", ")) -}}
{{- end -}}
{{- index $known $key | toYaml -}}
{{- end -}}
{{- end }}

{{/* The cache's claim. */}}
{{- define "vllm.claim" -}}
accessModes: [ReadWriteOnce]
{{- with .Values.cache.storageClass }}
storageClassName: {{ . }}
{{- end }}
resources:
  requests: {storage: {{ .Values.cache.size }}}
{{- end }}
