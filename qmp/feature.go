package qmp

import (
	"context"
	"maps"
	"slices"
)

// feature is something that a QEMU has or lacks.
type feature struct {
	path string // in the schema
	min  string // first QEMU that has it
}

// features are what protecting a VM needs or can use. QEMU lists objects and
// drivers only if they were compiled in, and objects only from 6.0 on.
var features = map[string]feature{
	"x-colo":                    {"migrate-set-capabilities/capabilities/capability/x-colo", "2.8"},
	"return-path":               {"migrate-set-capabilities/capabilities/capability/return-path", "2.10"},
	"events":                    {"migrate-set-capabilities/capabilities/capability/events", "2.4"},
	"pause-before-switchover":   {"migrate-set-capabilities/capabilities/capability/pause-before-switchover", "2.11"},
	"x-checkpoint-delay":        {"migrate-set-parameters/x-checkpoint-delay", "2.8"},
	"x-colo-lost-heartbeat":     {"x-colo-lost-heartbeat", "2.8"},
	"query-colo-status":         {"query-colo-status", "3.1"},
	"COLO_EXIT":                 {"COLO_EXIT", "3.1"},
	"migrate-continue":          {"migrate-continue", "2.11"},
	"migrate-channels":          {"migrate/channels", "8.2"},
	"x-blockdev-change":         {"x-blockdev-change", "2.7"},
	"replication driver":        {"blockdev-add/driver/replication", "2.9"},
	"quorum driver":             {"blockdev-add/driver/quorum", "2.9"},
	"nbd driver":                {"blockdev-add/driver/nbd", "2.9"},
	"qcow2 driver":              {"blockdev-add/driver/qcow2", "2.9"},
	"blockdev-mirror":           {"blockdev-mirror", "2.6"},
	"blockdev-backup":           {"blockdev-backup", "2.3"},
	"blockdev-backup bitmap":    {"blockdev-backup/bitmap-mode", "4.2"},
	"block-dirty-bitmap":        {"block-dirty-bitmap-add", "2.4"},
	"block-export-add":          {"block-export-add", "5.2"},
	"nbd-server-start":          {"nbd-server-start", "1.3"},
	"yank":                      {"yank", "6.0"},
	"query-yank":                {"query-yank", "6.0"},
	"colo-compare":              {"object-add/qom-type/colo-compare", "6.0"},
	"filter-mirror":             {"object-add/qom-type/filter-mirror", "6.0"},
	"filter-redirector":         {"object-add/qom-type/filter-redirector", "6.0"},
	"filter-rewriter":           {"object-add/qom-type/filter-rewriter", "6.0"},
	"filter-buffer":             {"object-add/qom-type/filter-buffer", "6.0"},
	"iothread":                  {"object-add/qom-type/iothread", "6.0"},
	"tls-creds-psk":             {"object-add/qom-type/tls-creds-psk", "6.0"},
	"colo-compare vnet_hdr":     {"object-add/colo-compare/vnet_hdr_support", "6.0"},
	"filter-mirror vnet_hdr":    {"object-add/filter-mirror/vnet_hdr_support", "6.0"},
	"filter insert":             {"object-add/filter-mirror/insert", "6.0"},
	"announce-self":             {"announce-self", "4.0"},
	"chardev reconnect-ms":      {"chardev-add/backend/socket/data/reconnect-ms", "9.2"},
	"chardev tls":               {"chardev-add/backend/socket/data/tls-creds", "2.6"},
	"mptcp":                     {"nbd-server-start/addr/inet/data/mptcp", "6.1"},
	"multifd":                   {"migrate-set-capabilities/capabilities/capability/multifd", "4.0"},
	"zero-copy-send":            {"migrate-set-capabilities/capabilities/capability/zero-copy-send", "7.1"},
	"block-dirty-bitmap-merge":  {"block-dirty-bitmap-merge", "4.0"},
	"query-block-exports":       {"query-block-exports", "5.2"},
	"job-dismiss":               {"job-dismiss", "3.0"},
	"block-job-set-speed":       {"block-job-set-speed", "1.1"},
	"query-named-block-nodes":   {"query-named-block-nodes/flat", "5.0"},
	"blockdev-mirror copy-mode": {"blockdev-mirror/copy-mode", "3.0"},
	"quorum read-pattern":       {"blockdev-add/quorum/read-pattern", "2.9"},
	"nbd server tls":            {"nbd-server-start/tls-creds", "2.6"},
	"migration tls":             {"migrate-set-parameters/tls-creds", "2.7"},
	"colo-compare timeouts":     {"object-add/colo-compare/compare_timeout", "6.0"},
	"colo-compare max_queue":    {"object-add/colo-compare/max_queue_size", "6.0"},
	"colo-compare expired scan": {"object-add/colo-compare/expired_scan_cycle", "6.0"},
}

// ColoFeatures are the names that protection can't do without.
func ColoFeatures() []string {
	return []string{
		"x-colo", "return-path", "events", "pause-before-switchover", "x-checkpoint-delay",
		"x-colo-lost-heartbeat", "query-colo-status", "COLO_EXIT", "migrate-continue",
		"x-blockdev-change", "replication driver", "quorum driver", "nbd driver", "qcow2 driver",
		"blockdev-mirror", "blockdev-backup bitmap", "block-dirty-bitmap", "block-export-add",
		"query-named-block-nodes", "yank", "query-yank",
		"colo-compare", "filter-mirror", "filter-redirector", "filter-rewriter", "iothread",
		"colo-compare vnet_hdr", "filter-mirror vnet_hdr", "filter insert", "announce-self",
	}
}

// Features tells what a QEMU can do. It doesn't change; it may be used
// concurrently.
type Features struct {
	Version Version
	OOB     bool
	schema  *schema
}

// Probe asks a QEMU for its schema.
func Probe(ctx context.Context, c *Client) (*Features, error) {
	raw, err := c.QueryQMPSchema(ctx)
	if err != nil {
		return nil, err
	}
	s, err := parseSchema(raw)
	if err != nil {
		return nil, err
	}
	return &Features{Version: c.Greeting().Version, OOB: c.OOB(), schema: s}, nil
}

// Has tells whether this QEMU has a feature. name is one of FeatureNames, "oob",
// or a path into the schema such as "chardev-add/backend/socket/data/mptcp".
func (f *Features) Has(name string) bool {
	if name == "oob" {
		return f.OOB
	}
	if ft, ok := features[name]; ok {
		return f.schema.has(ft.path)
	}
	return f.schema.has(name)
}

// Require returns an *UnsupportedError for the first feature that is missing.
func (f *Features) Require(names ...string) error {
	for _, name := range names {
		if !f.Has(name) {
			return &UnsupportedError{Feature: name, MinQEMU: features[name].min, QEMU: f.Version.String()}
		}
	}
	return nil
}

// Missing returns which of the features this QEMU lacks.
func (f *Features) Missing(names ...string) []string {
	return slices.DeleteFunc(slices.Clone(names), f.Has)
}

// FeatureNames returns all names that have one.
func FeatureNames() []string { return slices.Sorted(maps.Keys(features)) }

// Commands returns the names of all commands, sorted.
func (f *Features) Commands() []string {
	var l []string
	for name, e := range f.schema.entities {
		if e.MetaType == "command" {
			l = append(l, name)
		}
	}
	slices.Sort(l)
	return l
}
