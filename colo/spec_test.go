package colo

import (
	"errors"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/coloctl/coloctl/blockrepl"
)

const goodSpec = `name: web
memory: 256MiB
vcpus: 2
disks:
  - name: vda
    file: web.raw
    size: 64MiB
  - name: vdb
    file: /srv/data.qcow2
    format: qcow2
    size: 1GiB
nics:
  - name: net0
    bridge: br0
    mac: 52:54:00:12:34:56
protection:
  checkpoint-delay: 250ms
  sync-speed: 100MB
`

func TestParseSpec(t *testing.T) {
	s, err := ParseSpec([]byte(goodSpec), "web.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if s.Memory != 256<<20 || s.Disks[0].Format != "raw" || s.NICs[0].Model != "virtio-net-pci" || s.Protection.SyncSpeed != 100e6 || s.Machine != "pc" {
		t.Errorf("%+v", s)
	}
	if s.Protection.CompareTimeout != Duration(defaultCompareTimeout) {
		t.Errorf("compare timeout %s", s.Protection.CompareTimeout)
	}
	text, err := MarshalSpec(s)
	if err != nil {
		t.Fatal(err)
	}
	again, err := ParseSpec(text, "again")
	if err != nil {
		t.Fatalf("what was written can't be read: %v\n%s", err, text)
	}
	if !reflect.DeepEqual(s, again) {
		t.Errorf("\n%+v\n%+v", s, again)
	}
}

// TestParseSpecErrors checks that each mistake is reported with its place, its field and what was expected.
func TestParseSpecErrors(t *testing.T) {
	change := func(old, new string) string {
		if !strings.Contains(goodSpec, old) {
			t.Fatalf("no %q in the good spec", old)
		}
		return strings.Replace(goodSpec, old, new, 1)
	}
	for _, c := range []struct{ name, text, want string }{
		{"unknown field", change("vcpus: 2", "vcpu: 2"), `web.yaml:3:1: vcpu: unknown field`},
		{"unknown field below", change("    size: 64MiB", "    size: 64MiB\n    cache: none"), `web.yaml:8:5: disks[0].cache: unknown field "cache": expected one of file, format, media, name, read-only, size`},
		{"name", change("name: web", "name: Web_1"), `web.yaml:1:7: name: "Web_1" is not a name`},
		{"memory", change("256MiB", "256"), `web.yaml:2:9: memory: 256: expected a whole number of MiB`},
		{"size", change("1GiB", "one"), `web.yaml:11:11: disks[1].size: "one" is not a size: expected a whole number with a unit`},
		{"duration", change("250ms", "250"), `web.yaml:17:21: protection.checkpoint-delay: "250" is not a duration: expected for example 500ms or 20s`},
		{"format", change("qcow2\n    size", "vmdk\n    size"), `web.yaml:10:13: disks[1].format: "vmdk": expected raw or qcow2`},
		{"disk twice", change("name: vdb", "name: vda"), `web.yaml:8:11: disks[1].name: "vda" is used twice`},
		{"mac", change("52:54:00:12:34:56", "53:54:00:12:34:56"), `web.yaml:15:10: nics[0].mac: 53:54:00:12:34:56 is a multicast address`},
		{"bridge missing", change("    bridge: br0\n", ""), `nics[0].bridge: "": expected the name of a bridge`},
		{"no disks", "name: web\nmemory: 1GiB\n", `disks: missing: a VM needs at least one disk`},
		{"twice", change("vcpus: 2", "vcpus: 2\nvcpus: 3"), `web.yaml:4:1: vcpus: mapping key "vcpus" already defined at [3:1]`},
		{"empty", "", `expected one YAML document`},
		{"two documents", goodSpec + "---\n" + goodSpec, `expected one YAML document, found 2`},
		{"syntax", "name: [web\n", `web.yaml:`},
		{"a word for a number", change("vcpus: 2", "vcpus: many"), `web.yaml:3:8: vcpus: "many": expected a whole number`},
		{"a fraction", change("vcpus: 2", "vcpus: 1.5"), `web.yaml:3:8: vcpus: "1.5": expected a whole number`},
		{"a very large number", change("vcpus: 2", "vcpus: 99999999999999999999"), `web.yaml:3:8: vcpus: `},
		{"a word for a switch", change("checkpoint-delay: 250ms", "adaptive: yes"), `web.yaml:17:13: protection.adaptive: "yes": expected true or false`},
		{"a list for a size", change("256MiB", "[256MiB]"), `web.yaml:2:9: memory: expected one value, got a list`},
		{"fields for text", change("name: web", "name: {a: b}"), `name: expected text, got fields`},
		{"text for a list", change("vcpus: 2", "nodes: n1"), `web.yaml:3:8: nodes: expected a list, got "n1"`},
		{"text for fields", change("vcpus: 2", "boot: disk"), `web.yaml:3:7: boot: expected fields (append, initrd, kernel), got "disk"`},
		{"an open quote", "memory: \"256MiB\nname: web\nvcpus: 1\n", `web.yaml:1:9: spec: could not find end character of double-quoted text, at "256MiB"`},
		{"one candidate", change("vcpus: 2", "nodes: [n1]"), `nodes: [n1]: expected two or more`},
		{"a candidate twice", change("vcpus: 2", "nodes: [n1, n2, n1]"), `web.yaml:3:17: nodes[2]: "n1" is named twice`},
		{"a candidate's name", change("vcpus: 2", "nodes: [n1, N2]"), `web.yaml:3:13: nodes[1]: "N2" is not the name of a node`},
		{"preferred is no candidate", change("vcpus: 2", "preferred: n3\nnodes: [n1, n2]"), `web.yaml:3:12: preferred: "n3" is none of its nodes [n1 n2]`},
		{"no time at all", change("checkpoint-delay: 250ms", "checkpoint-delay: 0s"), `web.yaml:17:21: protection.checkpoint-delay: 0s: expected 1ms to 5m; leave it out`},
		{"nobody takes its place", change("checkpoint-delay: 250ms", "replace-after: 1m"), `web.yaml:17:18: protection.replace-after: 1m0s: expected 1s or more, with three nodes or more`},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := ParseSpec([]byte(c.text), "web.yaml")
			if err == nil {
				t.Fatal("accepted")
			}
			var inv *InvalidSpecError
			if !strings.Contains(err.Error(), c.want) || !errors.As(err, &inv) {
				t.Errorf("\n got %v (%T)\nwant %s", err, err, c.want)
			}
			if strings.Contains(err.Error(), "\n") && c.name != "bridge missing" {
				t.Errorf("more than one line for one mistake: %s", err)
			}
		})
	}
}

// TestSeveralMistakes: what can't be read at all is reported in one go too.
func TestSeveralMistakes(t *testing.T) {
	_, err := ParseSpec([]byte("name: web\nmemory: much\nvcpus: many\ndisks:\n- {name: vda, file: a, size: 1GiB, cache: none}\n"), "web.yaml")
	want := `web.yaml:2:9: memory: "much" is not a size: expected a whole number with a unit, for example 256MiB or 4GiB
web.yaml:3:8: vcpus: "many": expected a whole number
web.yaml:5:36: disks[0].cache: unknown field "cache": expected one of file, format, media, name, read-only, size`
	if err == nil || err.Error() != want {
		t.Errorf("\n got %v\nwant %s", err, want)
	}
}

func TestOverlaySpec(t *testing.T) {
	const vm = "name: web\nmemory: 64MiB\ndisks:\n- {name: vda, file: a.raw, size: 1GiB}\n"
	s, err := ParseSpec([]byte(vm+"overlays: {dir: /var/cache/overlays, max-size: 2GiB}\n"), "web.yaml")
	if err != nil || s.Overlays != (OverlaySpec{Dir: "/var/cache/overlays", MaxSize: 2 << 30}) {
		t.Errorf("%+v, %v", s, err)
	}
	for overlays, want := range map[string]string{
		"overlays: {dir: there}":     "overlays.dir: \"there\": expected an absolute path",
		"overlays: {max-size: 1KiB}": "overlays.max-size: 1KiB: expected at least 1MiB",
		"overlays: {max: 1GiB}":      "max",
	} {
		if _, err := ParseSpec([]byte(vm+overlays+"\n"), "web.yaml"); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", overlays, err, want)
		}
	}
}

func TestReadOnlyDisks(t *testing.T) {
	const vm = "name: web\nmemory: 64MiB\ndisks:\n"
	s, err := ParseSpec([]byte(vm+"- {name: vda, file: a.raw, size: 1GiB}\n- {name: cd, file: a.iso, media: cdrom}\n- {name: data, file: /d.qcow2, format: qcow2, read-only: true, media: disk}\n"), "web.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if len(s.mirrored()) != 1 || !s.Disks[1].ReadOnly || len(s.disks("/s")) != 1 {
		t.Errorf("%+v", s.Disks)
	}
	want := []blockrepl.Medium{{Name: "cd", Path: "/s/a.iso", Format: "raw", CDROM: true}, {Name: "data", Path: "/d.qcow2", Format: "qcow2"}}
	if got := s.media("/s"); !slices.Equal(got, want) {
		t.Errorf("%+v", got)
	}
	for disks, want := range map[string]string{
		"- {name: cd, file: a.iso, media: cdrom}\n":                                                    "disks: a VM needs at least one disk that is not read-only",
		"- {name: vda, file: a, size: 1GiB}\n- {name: cd, file: a.iso, media: tape}\n":                 "web.yaml:5:",
		"- {name: vda, file: a, size: 1GiB}\n- {name: cd, file: a.iso, read-only: true, size: 1GiB}\n": "disks[1].size: 1GiB: leave it out",
		"- {name: vda, file: a, size: 1GiB}\n- {name: cd, file: a.iso}\n":                              "disks[1].size: 0: expected at least 1MiB",
		"- {name: vda, file: a, size: 1GiB}\n- {name: vda, file: b, media: cdrom}\n":                   "disks[1].name: \"vda\" is used twice",
		"- {name: vda, file: a, size: 1GiB}\n- {name: c, file: a, media: cdrom}\n":                     "disks[1].file: \"a\" belongs to another disk already",
		"- {name: vda, file: a, size: 1GiB}\n- {name: c, file: x/../a, media: cdrom}\n":                "disks[1].file: \"x/../a\" belongs to another disk already",
		"- {name: vda, file: ../a, size: 1GiB}\n":                                                      "disks[0].file: \"../a\" leads out of the storage folder",
		"- {name: vda, file: a, size: 1GiB}\n" + strings.Join([]string{"- {name: c1, file: 1, media: cdrom}", "- {name: c2, file: 2, media: cdrom}", "- {name: c3, file: 3, media: cdrom}", "- {name: c4, file: 4, media: cdrom}", "- {name: c5, file: 5, media: cdrom}\n"}, "\n"): "disks[5].media: more than 4 CD-ROMs",
	} {
		if _, err := ParseSpec([]byte(vm+disks), "web.yaml"); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", disks, err, want)
		}
	}
}

func TestParseSize(t *testing.T) {
	for text, want := range map[string]Size{"0": 0, "512": 512, "1KiB": 1024, "64 MiB": 64 << 20, "4G": 4 << 30, "10GB": 10e9, "3TiB": 3 << 40, "7B": 7} {
		got, err := ParseSize(text)
		if err != nil || got != want {
			t.Errorf("%q: %d, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "MiB", "-1MiB", "1.5GiB", "9223372036854775807KiB", "1XB"} {
		if got, err := ParseSize(text); err == nil {
			t.Errorf("%q: %d", text, got)
		}
	}
}

func FuzzParseSpec(f *testing.F) {
	f.Add([]byte(goodSpec))
	f.Add([]byte("a: &a [*a]"))
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := ParseSpec(data, "fuzz")
		if err != nil {
			return
		}
		if err := s.Validate(); err != nil {
			t.Fatalf("accepted, but not valid: %v", err)
		}
		if _, err := MarshalSpec(s); err != nil {
			t.Fatal(err)
		}
	})
}

// TestCandidates: the time after which a lost node is replaced has a default where there is somebody to take its place.
func TestCandidates(t *testing.T) {
	for text, want := range map[string]Duration{
		"nodes: [n1, n2]\n":     0,
		"nodes: [n1, n2, n3]\n": Duration(defaultReplaceAfter),
		"nodes: [n1, n2, n3]\nprotection: {replace-after: 90s}\n": Duration(90 * time.Second),
	} {
		s, err := ParseSpec([]byte("name: web\nmemory: 64MiB\ndisks:\n- {name: vda, file: a.raw, size: 1GiB}\n"+text), "web.yaml")
		if err != nil {
			t.Fatal(err)
		}
		if got := s.Protection.ReplaceAfter; got != want {
			t.Errorf("%s: %s, want %s", text, time.Duration(got), time.Duration(want))
		}
	}
}
