{{/* Labels of every object; `app.kubernetes.io/name` alone is what policies select pods by. */}}
{{- define "mmar-jobs.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
app.kubernetes.io/name: mmar-jobs
app.kubernetes.io/part-of: mmar-jobs
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{/* Reference of an image: (list root "cpu"). */}}
{{- define "mmar-jobs.image" -}}
{{- $root := index . 0 -}}
{{- $image := index $root.Values.images (index . 1) -}}
{{- printf "%s:%s" $image.repository ($image.tag | default $root.Chart.AppVersion) -}}
{{- with $image.digest }}@{{ . }}{{ end -}}
{{- end }}

{{/* Names of pull Secrets as Kubernetes wants them. */}}
{{- define "mmar-jobs.pullSecrets" -}}
{{- range .Values.images.pullSecrets }}
- name: {{ . }}
{{- end }}
{{- end }}

{{/* The variable of a setting: optim.learning-rates is MMAR_OPTIM__LEARNING_RATES. */}}
{{- define "mmar-jobs.variable" -}}
MMAR_{{ . | replace "." "__" | replace "-" "_" | upper }}
{{- end }}

{{/* Bucket and prefix of the store, as JSON. */}}
{{- define "mmar-jobs.bucket" -}}
{{- $parts := trimPrefix "s3://" .Values.store | splitn "/" 2 -}}
{{- dict "bucket" $parts._0 "prefix" ($parts._1 | default "") | toJson -}}
{{- end }}

{{/* A stage's Job, fitted to this release: (list root "train"). */}}
{{- define "mmar-jobs.job" -}}
{{- $root := index . 0 -}}
{{- $stage := index . 1 -}}
{{- $chosen := index $root.Values.stages $stage -}}
{{- $job := $root.Files.Get (printf "files/jobs/%s.yaml" $stage) | fromYaml -}}
{{- $pod := $job.spec.template.spec -}}
{{- $container := first $pod.containers -}}
{{- $_ := set $container "image" (include "mmar-jobs.image" (list $root (trimPrefix "mmar-jobs/" $container.image))) -}}
{{- $_ := set $container "imagePullPolicy" $root.Values.images.pullPolicy -}}
{{- $gpus := dig "limits" "nvidia.com/gpu" "" $container.resources -}}
{{- with $chosen.resources }}{{ $_ := set $container "resources" . }}{{ end -}}
{{- with $chosen.nodeSelector }}{{ $_ := set $pod "nodeSelector" . }}{{ end -}}
{{- with $chosen.runtimeClassName }}{{ $_ := set $pod "runtimeClassName" . }}{{ end -}}
{{- with $chosen.tolerations }}{{ $_ := set $pod "tolerations" (concat ($pod.tolerations | default list) .) }}{{ end -}}
{{- with include "mmar-jobs.pullSecrets" $root | fromYamlArray }}{{ $_ := set $pod "imagePullSecrets" . }}{{ end -}}
{{- range $pod.volumes }}
{{- if .persistentVolumeClaim }}{{ $_ := set .persistentVolumeClaim "claimName" $root.Values.model.existingClaim }}{{ end -}}
{{- end }}
{{- with ternary $root.Values.kueue.gpuQueue $root.Values.kueue.cpuQueue (ne $gpus "") -}}
{{- $_ := set $job.metadata.labels "kueue.x-k8s.io/queue-name" . -}}
{{- end }}
{{- toYaml $job -}}
{{- end }}

{{/* Security of pods and containers that talk to the API server. */}}
{{- define "mmar-jobs.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "mmar-jobs.containerSecurity" -}}
allowPrivilegeEscalation: false
capabilities: {drop: [ALL]}
readOnlyRootFilesystem: true
{{- end }}

{{/* A pod that stops servers whose lease is over; does nothing where there is none. */}}
{{- define "mmar-jobs.reaping" -}}
restartPolicy: Never
serviceAccountName: mmar-jobs-reaper
enableServiceLinks: false
priorityClassName: mmar-jobs-cpu
securityContext:
  {{- include "mmar-jobs.podSecurity" . | nindent 2 }}
{{- with include "mmar-jobs.pullSecrets" . }}
imagePullSecrets:
  {{- . | nindent 2 }}
{{- end }}
containers:
  - name: reaper
    image: {{ include "mmar-jobs.image" (list . "cpu") }}
    imagePullPolicy: {{ .Values.images.pullPolicy }}
    command: [mmar-jobs, cluster, reap]
    args: [--namespace={{ .Release.Namespace }}]
    resources:
      requests: {cpu: 50m, memory: 128Mi}
      limits: {memory: 256Mi}
    securityContext:
      {{- include "mmar-jobs.containerSecurity" . | nindent 6 }}
    volumeMounts:
      - {name: scratch, mountPath: /tmp}
volumes:
  - name: scratch
    emptyDir: {sizeLimit: 64Mi}
{{- end }}
