{{- define "dippm.fullname" -}}
{{- if contains "dippm" .Release.Name }}{{ .Release.Name | trunc 40 | trimSuffix "-" }}{{ else }}{{ printf "%s-dippm" .Release.Name | trunc 40 | trimSuffix "-" }}{{ end }}
{{- end }}

{{- define "dippm.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
app.kubernetes.io/name: dippm
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- /* Call with (dict "root" . "component" "webhook"). */ -}}
{{- define "dippm.selector" -}}
app.kubernetes.io/name: dippm
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{- define "dippm.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{- define "dippm.webhookService" -}}
{{ include "dippm.fullname" . }}-webhook
{{- end }}

{{- define "dippm.certificateSecret" -}}
{{ include "dippm.fullname" . }}-webhook-tls
{{- end }}

{{- /* Nothing here needs a writable root, a capability or a root user. */ -}}
{{- define "dippm.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
capabilities: {drop: [ALL]}
seccompProfile: {type: RuntimeDefault}
{{- end }}
