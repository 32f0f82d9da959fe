{{/* Names. 32 characters leave room for what Kubernetes and we put around them. */}}
{{- define "headwater.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 32 | trimSuffix "-" -}}
{{- end -}}

{{- define "headwater.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 32 | trimSuffix "-" -}}
{{- else if contains (include "headwater.name" .) .Release.Name -}}
{{- .Release.Name | trunc 32 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "headwater.name" .) | trunc 32 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* What is unique in an etcd that releases of several namespaces may share: "namespace." with room for a name of so many characters in the 63 of an id, else its hash. */}}
{{- define "headwater.scope" -}}
{{- if not .root.Values.etcd.enabled -}}
{{- $namespace := .root.Release.Namespace -}}
{{- ternary $namespace (sha256sum $namespace | trunc 8) (le (add (len $namespace) 1 .length) 63) -}}.
{{- end -}}
{{- end -}}

{{- define "headwater.cluster" -}}
{{- $name := include "headwater.fullname" . -}}
{{- .Values.cluster | default (printf "%s%s" (include "headwater.scope" (dict "root" . "length" (len $name))) $name) -}}
{{- end -}}

{{- define "headwater.serviceAccountName" -}}
{{- .Values.serviceAccount.name | default (ternary (include "headwater.fullname" .) "default" .Values.serviceAccount.create) -}}
{{- end -}}

{{/* The Secret with the tokens. */}}
{{- define "headwater.authSecret" -}}
{{- .Values.auth.existingSecret | default (printf "%s-auth" (include "headwater.fullname" .)) -}}
{{- end -}}

{{/* What a role's pods are selected by: (dict "root" $ "role" "edge"). */}}
{{- define "headwater.selector" -}}
app.kubernetes.io/name: {{ include "headwater.name" .root }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
{{- with .role }}
app.kubernetes.io/component: {{ . }}
{{- end }}
{{- end -}}

{{- define "headwater.labels" -}}
{{ include "headwater.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- end -}}

{{/* An image: (dict "root" $ "image" .Values.edge.image "flavour" ""). */}}
{{- define "headwater.image" -}}
{{- $base := .root.Values.image -}}
{{- $registry := .root.Values.global.imageRegistry | default $base.registry -}}
{{- $repository := .image.repository | default $base.repository -}}
{{- $digest := .image.digest | default (ternary "" $base.digest (or (ne .flavour "") (ne .image.tag ""))) -}}
{{- with $registry }}{{ . }}/{{ end }}{{ $repository }}
{{- if $digest }}@{{ $digest }}{{ else -}}
:{{ .image.tag | default (printf "%s%s" ($base.tag | default .root.Chart.AppVersion) .flavour) }}
{{- end -}}
{{- end -}}

{{/* A number as it was written. Helm reads all numbers as floats, and would print 12000000 as 1.2e+07. */}}
{{- define "headwater.scalar" -}}
{{- if and (kindIs "float64" .) (eq . (floor .)) }}{{ printf "%.0f" . }}
{{- else if kindIs "slice" . }}
{{- $items := list -}}
{{- range . }}{{ $items = append $items (include "headwater.scalar" .) }}{{ end -}}
{{- join "," $items }}
{{- else }}{{ toString . }}{{ end -}}
{{- end -}}

{{/* The variable of a key: edge.ring_bytes is HEADWATER_EDGE__RING_BYTES. */}}
{{- define "headwater.variable" -}}
HEADWATER_{{ upper . | replace "." "__" }}
{{- end -}}

{{/* An address to listen on. */}}
{{- define "headwater.listen" -}}
{{- ternary "[::]" "0.0.0.0" .root.Values.global.ipv6 }}:{{ int .port }}
{{- end -}}

{{/* This pod's address in a URL. */}}
{{- define "headwater.podHost" -}}
{{- ternary "[$(POD_IP)]" "$(POD_IP)" .Values.global.ipv6 -}}
{{- end -}}

{{/* How the edge's address is found: auto resolved. */}}
{{- define "headwater.advertise" -}}
{{- if ne .Values.edge.media.advertise "auto" }}{{ .Values.edge.media.advertise }}
{{- else if eq .Values.edge.media.exposure "loadBalancer" }}ingress
{{- else }}hostIP{{ end -}}
{{- end -}}

{{/* What edges may read at Kubernetes' API to find it: nodes, services or nothing. */}}
{{- define "headwater.edge.reads" -}}
{{- $advertise := include "headwater.advertise" . -}}
{{- if eq $advertise "nodeExternalIP" }}nodes{{ else if eq $advertise "ingress" }}services{{ end -}}
{{- end -}}

{{/* The account of edges: one of their own where they read something. */}}
{{- define "headwater.edge.serviceAccountName" -}}
{{- if include "headwater.edge.reads" . }}{{ include "headwater.fullname" . }}-edge{{ else }}{{ include "headwater.serviceAccountName" . }}{{ end -}}
{{- end -}}

{{/* "true" where each edge has ports or addresses of its own, which needs pods with numbers. */}}
{{- define "headwater.edge.numbered" -}}
{{- if has .Values.edge.media.exposure (list "nodePort" "loadBalancer") }}true{{ end -}}
{{- end -}}

{{- define "headwater.edge.kind" -}}
{{- ternary "StatefulSet" "Deployment" (eq (include "headwater.edge.numbered" .) "true") -}}
{{- end -}}

{{/* How many edges. Under the autoscaler as many as there are: without a number the API server would make it one, and all but one would drain at once. */}}
{{- define "headwater.edge.replicas" -}}
{{- if .Values.autoscaling.enabled -}}
{{- $live := lookup "apps/v1" (include "headwater.edge.kind" .) .Release.Namespace (printf "%s-edge" (include "headwater.fullname" .)) -}}
{{- $running := dig "spec" "replicas" 0 $live | int -}}
{{- $running | max (int .Values.autoscaling.minReplicas) | min (int .Values.autoscaling.maxReplicas) -}}
{{- else -}}
{{- int .Values.edge.replicas -}}
{{- end -}}
{{- end -}}

{{/* "true" where viewers' requests come from addresses that many share: a proxy's, or the nodes', which forward them. */}}
{{- define "headwater.edge.sharedAddresses" -}}
{{- $http := .Values.edge.http -}}
{{- $forwarded := and (ne $http.service.type "ClusterIP") (eq (include "headwater.trafficPolicy" $http.service) "Cluster") -}}
{{- if or $http.behindProxy $http.ingress.enabled $forwarded }}true{{ end -}}
{{- end -}}

{{/* A quantity as a number: bytes, cores. API servers write 2048Mi as 2Gi. */}}
{{- define "headwater.quantity" -}}
{{- $text := toString . -}}
{{- if regexMatch "^[0-9.]+([eE][+-]?[0-9]+)?$" $text -}}
{{- printf "%.3f" (float64 $text) -}}
{{- else -}}
{{- $scale := dict "m" 0.001 "k" 1e3 "M" 1e6 "G" 1e9 "T" 1e12 "Ki" 1024 "Mi" 1048576 "Gi" 1073741824 "Ti" 1099511627776 -}}
{{- printf "%.3f" (mulf (regexFind "^[0-9.]+" $text | float64) (get $scale (regexFind "[A-Za-z]+$" $text))) -}}
{{- end -}}
{{- end -}}

{{- define "headwater.edge.publicUrl" -}}
{{- $ingress := .Values.edge.http.ingress -}}
{{- if .Values.edge.http.publicUrl }}{{ .Values.edge.http.publicUrl }}
{{- else if and $ingress.enabled $ingress.host (not (hasPrefix "*" $ingress.host)) }}{{ ternary "https" "http" (ne $ingress.tlsSecret "") }}://{{ $ingress.host }}
{{- end -}}
{{- end -}}

{{/* Client URLs of etcd's members. */}}
{{- define "headwater.etcd.endpoints" -}}
{{- if .Values.etcd.enabled -}}
{{- $name := include "etcd.fullname" . -}}
{{- $urls := list -}}
{{- range $i := until (int .Values.etcd.replicas) -}}
{{- $urls = append $urls (printf "http://%s-%d.%s.%s.svc:2379" $name $i $name $.Release.Namespace) -}}
{{- end -}}
{{- join "," $urls -}}
{{- else -}}
{{- join "," .Values.etcd.endpoints -}}
{{- end -}}
{{- end -}}

{{/* Further settings of a role: (dict "root" $ "role" "edge" "values" .Values.edge). Its own before those of all; Sprig's merge would take a false or 0 for none. */}}
{{- define "headwater.settings" -}}
{{- $settings := dict -}}
{{- range $given := list .root.Values.config .values.config -}}
{{- range $key, $value := $given -}}
{{- $_ := set $settings $key $value -}}
{{- end -}}
{{- end -}}
{{- if eq .role "origin" -}}
{{- include "headwater.origin.size" (dict "settings" $settings "resources" .values.resources) -}}
{{- end -}}
{{- toYaml $settings -}}
{{- end -}}

{{/* Adds how many streams an origin has memory for: an ffmpeg has some 200 MiB, a stream's caches 40 at most, and the node itself gets half a GiB. */}}
{{- define "headwater.origin.size" -}}
{{- $settings := .settings -}}
{{- $resources := .resources -}}
{{- with dig "limits" "memory" "" $resources -}}
{{- $room := subf (include "headwater.quantity" . | float64) 536870912.0 -}}
{{- $ladders := 0 -}}
{{- if ne (toString (get $settings "ladder.enabled")) "false" -}}
{{- $cores := dig "limits" "cpu" (dig "requests" "cpu" 1 $resources) $resources -}}
{{- $ladders = mulf 4 (include "headwater.quantity" $cores | float64) | int | min (divf $room 419430400 | int) | max 1 -}}
{{- if hasKey $settings "ladder.streams_max" -}}
{{- $ladders = int (get $settings "ladder.streams_max") | default $ladders -}}
{{- else -}}
{{- $_ := set $settings "ladder.streams_max" $ladders -}}
{{- end -}}
{{- end -}}
{{- if not (hasKey $settings "origin.streams_max") -}}
{{- $_ := set $settings "origin.streams_max" (divf (subf $room (mulf $ladders 209715200)) 41943040 | int | min 500 | max 1) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Variables of every node: (dict "root" $ "role" "edge" "values" .Values.edge "drain" 120 "stop" 10). Those of the pod first: others refer to them. */}}
{{- define "headwater.env" -}}
{{- $root := .root -}}
{{- $values := .root.Values -}}
- name: POD_NAME
  valueFrom:
    fieldRef:
      fieldPath: metadata.name
- name: POD_IP
  valueFrom:
    fieldRef:
      fieldPath: status.podIP
- name: HEADWATER_ID
  # Behind the full name: -origin-999, or -edge, -, a ReplicaSet's ten characters, - and a pod's five.
  value: {{ include "headwater.scope" (dict "root" $root "length" (add 22 (len (include "headwater.fullname" $root)))) }}$(POD_NAME)
- name: HEADWATER_CLUSTER
  value: {{ include "headwater.cluster" $root | quote }}
- name: HEADWATER_DRAIN_SECONDS
  value: {{ int .drain | quote }}
- name: HEADWATER_DRAIN_MIN_SECONDS
  # What Services and Ingresses take to notice that a pod isn't ready.
  value: "5"
- name: HEADWATER_STOP_SECONDS
  value: {{ int .stop | quote }}
- name: HEADWATER_LOG__FILTER
  value: {{ $values.log.filter | quote }}
- name: HEADWATER_LOG__FORMAT
  value: {{ $values.log.format | quote }}
- name: HEADWATER_ADMIN__LISTEN
  value: {{ include "headwater.listen" (dict "root" $root "port" 9600) | quote }}
- name: HEADWATER_DIRECTORY__ETCD
  value: {{ include "headwater.etcd.endpoints" $root | quote }}
{{- with $values.etcd.auth }}
{{- if .username }}
- name: HEADWATER_DIRECTORY__USERNAME
  value: {{ .username | quote }}
- name: HEADWATER_DIRECTORY__PASSWORD
  valueFrom:
    secretKeyRef:
      name: {{ .existingSecret | default (printf "%s-directory" (include "headwater.fullname" $root)) }}
      key: {{ ternary .passwordKey "password" (ne .existingSecret "") }}
{{- end }}
{{- end }}
{{- with $values.etcd.tls }}
{{- if .existingSecret }}
- name: HEADWATER_DIRECTORY__CA
  value: /etc/headwater/etcd/ca.crt
{{- if .clientCertificate }}
- name: HEADWATER_DIRECTORY__CERT
  value: /etc/headwater/etcd/tls.crt
- name: HEADWATER_DIRECTORY__KEY
  value: /etc/headwater/etcd/tls.key
{{- end }}
{{- end }}
{{- end }}
{{- $settings := include "headwater.settings" . | fromYaml }}
{{- range $key := keys $settings | sortAlpha }}
- name: {{ include "headwater.variable" $key }}
  value: {{ include "headwater.scalar" (get $settings $key) | quote }}
{{- end }}
{{- end -}}

{{/* Certificates for an etcd that is there. */}}
{{- define "headwater.etcd.mount" -}}
{{- if .Values.etcd.tls.existingSecret -}}
- name: etcd-tls
  mountPath: /etc/headwater/etcd
  readOnly: true
{{- end }}
{{- end -}}

{{- define "headwater.etcd.volume" -}}
{{- with .Values.etcd.tls -}}
{{- if .existingSecret -}}
- name: etcd-tls
  secret:
    secretName: {{ .existingSecret }}
    defaultMode: 0440
    items:
      {{- range ternary (list "ca.crt" "tls.crt" "tls.key") (list "ca.crt") .clientCertificate }}
      - key: {{ . }}
        path: {{ . }}
      {{- end }}
{{- end }}
{{- end }}
{{- end -}}

{{/* A token as a variable: (dict "root" $ "name" "HEADWATER_AUTH__PLAY_TOKEN" "given" .Values.auth.playToken "key" .Values.auth.playTokenKey "own" "play-token"). */}}
{{- define "headwater.token" -}}
{{- $existing := .root.Values.auth.existingSecret -}}
{{- $key := ternary .key (ternary .own "" (ne .given "")) (ne $existing "") -}}
{{- with $key -}}
- name: {{ $.name }}
  valueFrom:
    secretKeyRef:
      name: {{ include "headwater.authSecret" $.root }}
      key: {{ . }}
{{- end }}
{{- end -}}

{{/* STUN and TURN servers, from a Secret for their credentials. */}}
{{- define "headwater.iceServers" -}}
{{- $own := printf "%s-ice-servers" (include "headwater.fullname" .) -}}
{{- if or .Values.edge.iceServers .Values.edge.iceServersSecret -}}
- name: HEADWATER_EDGE__ICE_SERVERS
  valueFrom:
    secretKeyRef:
      name: {{ .Values.edge.iceServersSecret | default $own }}
      key: ice-servers
{{- end }}
{{- end -}}

{{- define "headwater.publishToken" -}}
{{- include "headwater.token" (dict "root" . "name" "HEADWATER_AUTH__PUBLISH_TOKEN" "given" .Values.auth.publishToken "key" .Values.auth.publishTokenKey "own" "publish-token") -}}
{{- end -}}

{{- define "headwater.playToken" -}}
{{- include "headwater.token" (dict "root" . "name" "HEADWATER_AUTH__PLAY_TOKEN" "given" .Values.auth.playToken "key" .Values.auth.playTokenKey "own" "play-token") -}}
{{- end -}}

{{- define "headwater.adminToken" -}}
{{- include "headwater.token" (dict "root" . "name" "HEADWATER_AUTH__ADMIN_TOKEN" "given" .Values.auth.adminToken "key" .Values.auth.adminTokenKey "own" "admin-token") -}}
{{- end -}}

{{/* What every container of ours may do: nothing. */}}
{{- define "headwater.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{- define "headwater.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{/* The node's probes. Health is no matter of etcd or of streams, and a busy node must not be killed: 30 s without an answer. */}}
{{- define "headwater.probes" -}}
startupProbe:
  httpGet:
    path: /healthz
    port: admin
  periodSeconds: 1
  timeoutSeconds: 2
  failureThreshold: 60
livenessProbe:
  httpGet:
    path: /healthz
    port: admin
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 3
readinessProbe:
  httpGet:
    path: /readyz
    port: admin
  periodSeconds: 2
  timeoutSeconds: 2
  failureThreshold: 2
{{- end -}}

{{/* Placement of a role's pods: (dict "root" $ "role" "edge" "values" .Values.edge). */}}
{{- define "headwater.placement" -}}
topologySpreadConstraints:
{{- if .values.topologySpreadConstraints }}
  {{- toYaml .values.topologySpreadConstraints | nindent 2 }}
{{- else }}
  {{- range list "topology.kubernetes.io/zone" "kubernetes.io/hostname" }}
  - maxSkew: 1
    topologyKey: {{ . }}
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels:
        {{- include "headwater.selector" $ | nindent 8 }}
  {{- end }}
{{- end }}
{{- with .values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- end -}}

{{/* Metadata of a role's pods. */}}
{{- define "headwater.podMetadata" -}}
labels:
  {{- include "headwater.labels" . | nindent 2 }}
  {{- with .values.podLabels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
annotations:
  {{- $ours := dict "kubectl.kubernetes.io/default-container" .role }}
  {{- if .root.Values.monitoring.annotations }}
  {{- $ours = merge $ours (dict "prometheus.io/scrape" "true" "prometheus.io/port" "9600" "prometheus.io/path" "/metrics") }}
  {{- end }}
  {{- include "headwater.checksums" . | nindent 2 }}
  {{- merge (dict) .values.podAnnotations $ours | toYaml | nindent 2 }}
{{- end -}}

{{/* Pods are replaced when what they read at their start changes. */}}
{{- define "headwater.checksums" -}}
{{- $v := .root.Values }}
{{- $read := list $v.etcd.auth.password $v.auth.adminToken (ternary $v.auth.publishToken $v.auth.playToken (eq .role "origin")) (ternary list $v.edge.iceServers (eq .role "origin")) }}
checksum/secrets: {{ $read | toJson | sha256sum }}
{{- if and (eq .role "edge") (include "headwater.edge.numbered" .root) }}
checksum/pods: {{ include (print .root.Template.BasePath "/edge-pods.yaml") .root | sha256sum }}
{{- end }}
{{- end -}}

{{- define "headwater.pullSecrets" -}}
{{- with .Values.image.pullSecrets -}}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- end -}}

{{/* Local keeps the address of whoever connects, but a node without a pod of ours takes nothing: a load balancer knows those, who was told a node doesn't. */}}
{{- define "headwater.trafficPolicy" -}}
{{- .externalTrafficPolicy | default (ternary "Local" "Cluster" (eq .type "LoadBalancer")) -}}
{{- end -}}

{{/* A Service's part that depends on its type, from its values. */}}
{{- define "headwater.exposure" -}}
type: {{ .type }}
{{- if ne .type "ClusterIP" }}
externalTrafficPolicy: {{ include "headwater.trafficPolicy" . }}
{{- end }}
{{- if eq .type "LoadBalancer" }}
{{- with .loadBalancerClass }}
loadBalancerClass: {{ . }}
{{- end }}
{{- with .loadBalancerSourceRanges }}
loadBalancerSourceRanges:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}
{{- end -}}
