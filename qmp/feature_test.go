package qmp

import (
	"errors"
	"os"
	"testing"
)

// testdata/schema.json is a small schema in QEMU's form.
func smallFeatures(t *testing.T) *Features {
	t.Helper()
	raw, err := os.ReadFile("testdata/schema.json")
	if err != nil {
		t.Fatal(err)
	}
	s, err := parseSchema(raw)
	if err != nil {
		t.Fatal(err)
	}
	f := &Features{schema: s}
	f.Version.QEMU.Major = 5
	return f
}

func TestFeatures(t *testing.T) {
	f := smallFeatures(t)
	for name, want := range map[string]bool{
		"stop":                           true,
		"STOP":                           true,
		"yank":                           false,
		"query-yank":                     false,
		"quorum driver":                  true,
		"replication driver":             false,
		"blockdev-add/driver/quorum":     true,
		"blockdev-add/quorum/threshold":  true,
		"blockdev-add/nbd/server/path":   true,
		"blockdev-add/quorum/server":     false,
		"blockdev-add/children/quorum":   false,
		"x-list/items/name":              true,
		"x-list/items/nom":               false,
		"x-either/ref/driver/nbd":        true,
		"x-either/ref/driver/ftp":        false,
		"int":                            false, // a type, neither command nor event
		"":                               false,
		"oob":                            false,
		"blockdev-add/driver/quorum/foo": false,
		"x-loop/next/next/next":          true,
	} {
		if got := f.Has(name); got != want {
			t.Errorf("%q: %v", name, got)
		}
	}
	var un *UnsupportedError
	if err := f.Require("stop", "yank", "oob"); !errors.As(err, &un) || un.Feature != "yank" || un.MinQEMU != "6.0" || un.QEMU != "5.0.0" {
		t.Errorf("got %v", err)
	}
	if err := f.Require("stop"); err != nil {
		t.Error(err)
	}
	if m := f.Missing("yank", "stop", "oob"); len(m) != 2 {
		t.Errorf("missing %v", m)
	}
	if _, err := parseSchema([]byte(`{}`)); err == nil {
		t.Error("an object was accepted as schema")
	}
}

func TestColoFeaturesAreKnown(t *testing.T) {
	for _, name := range ColoFeatures() {
		if _, ok := features[name]; !ok {
			t.Errorf("%q has no path", name)
		}
	}
}

func TestCheck(t *testing.T) {
	type m = map[string]any
	f := smallFeatures(t)
	for _, c := range []struct {
		command string
		args    any
		bad     string
	}{
		{"stop", nil, ""},
		{"yank", nil, "yank"},
		{"stop", m{"x": 1}, "stop.x"},
		{"blockdev-add", m{"driver": "quorum", "threshold": 1}, ""},
		{"blockdev-add", m{"driver": "quorum"}, "blockdev-add.threshold (is required)"},
		{"blockdev-add", m{"driver": "quorum", "threshold": "1"}, "blockdev-add.threshold (must be int)"},
		{"blockdev-add", m{"driver": "quorum", "threshold": 1.5}, "blockdev-add.threshold (must be int)"},
		{"blockdev-add", m{"driver": "ftp"}, "blockdev-add.driver=ftp"},
		{"blockdev-add", m{"driver": "nbd", "server": m{"path": "p"}}, ""},
		{"blockdev-add", m{"driver": "nbd", "server": m{"path": "p", "prt": 1}}, "blockdev-add.server.prt"},
		{"blockdev-add", m{"driver": "nbd", "server": "p"}, "blockdev-add.server (must be an object)"},
		{"blockdev-add", m{"driver": "nbd", "server": m{"path": "p"}, "threshold": 1}, "blockdev-add.threshold"},
		{"x-list", m{"items": []any{m{"name": "a"}, m{"nom": "b"}}}, "x-list.items[1].name (is required)"},
		{"x-list", m{"items": 7}, "x-list.items (must be a list)"},
		{"x-either", m{"ref": "node"}, ""},
		{"x-either", m{"ref": m{"driver": "quorum", "threshold": 1}}, ""},
		{"x-either", m{"ref": 7}, "x-either.ref=7"},
	} {
		err := f.Check(c.command, c.args)
		var un *UnsupportedError
		switch {
		case c.bad == "" && err != nil:
			t.Errorf("%s %v: %v", c.command, c.args, err)
		case c.bad != "" && (!errors.As(err, &un) || un.Feature != c.bad):
			t.Errorf("%s %v: got %v, want %s", c.command, c.args, err, c.bad)
		}
	}
}
