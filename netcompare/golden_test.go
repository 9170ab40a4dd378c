package netcompare

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/coloctl/coloctl/internal/qmptest"
	"github.com/coloctl/coloctl/qmp"
)

var update = flag.Bool("update", false, "write the golden files")

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name+".golden")
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got; -update writes it):\n%s", path, diff)
	}
}

// fakeQEMU is a fake that keeps account of objects and chardevs as QEMU does: no id twice, no chardev removed in use,
// nothing removed that isn't there.
type fakeQEMU struct {
	*qmptest.Fake
	mu       sync.Mutex
	objects  map[string]map[string]any
	chardevs map[string]string // id to filename
}

func newFake(t *testing.T) (*fakeQEMU, *qmp.Client) {
	f := &fakeQEMU{Fake: qmptest.New(t), objects: map[string]map[string]any{}, chardevs: map[string]string{"serial0": "null"}}
	type list = []map[string]any
	f.on("qom-list", func(map[string]any) (any, error) {
		l := list{{"name": "type", "type": "string"}}
		for _, id := range slices.Sorted(maps.Keys(f.objects)) {
			l = append(l, map[string]any{"name": id, "type": "child<x>"})
		}
		return l, nil
	})
	f.on("query-chardev", func(map[string]any) (any, error) {
		l := list{}
		for _, id := range slices.Sorted(maps.Keys(f.chardevs)) {
			l = append(l, map[string]any{"label": id, "filename": f.chardevs[id], "frontend-open": true})
		}
		return l, nil
	})
	f.on("object-add", func(a map[string]any) (any, error) {
		id := a["id"].(string)
		if f.objects[id] != nil {
			return nil, &qmp.Error{Class: "GenericError", Desc: "attempt to add duplicate property '" + id + "'"}
		}
		for _, key := range []string{"indev", "outdev", "primary_in", "secondary_in"} {
			if ch, ok := a[key].(string); ok && f.chardevs[ch] == "" {
				return nil, &qmp.Error{Class: "DeviceNotFound", Desc: "Device '" + ch + "' not found"}
			}
		}
		f.objects[id] = a
		return nil, nil
	})
	f.on("object-del", func(a map[string]any) (any, error) {
		id := a["id"].(string)
		if f.objects[id] == nil {
			return nil, &qmp.Error{Class: "GenericError", Desc: "object '" + id + "' not found"}
		}
		delete(f.objects, id)
		return nil, nil
	})
	f.on("chardev-add", func(a map[string]any) (any, error) {
		id := a["id"].(string)
		if f.chardevs[id] != "" {
			return nil, &qmp.Error{Class: "GenericError", Desc: "Chardev with id '" + id + "' already exists"}
		}
		f.chardevs[id] = "tcp:somewhere"
		return nil, nil
	})
	f.on("chardev-remove", func(a map[string]any) (any, error) {
		id := a["id"].(string)
		if f.chardevs[id] == "" {
			return nil, &qmp.Error{Class: "GenericError", Desc: "Chardev '" + id + "' not found"}
		}
		for _, o := range f.objects {
			for _, v := range o {
				if v == id {
					return nil, &qmp.Error{Class: "GenericError", Desc: "Chardev '" + id + "' is busy"}
				}
			}
		}
		delete(f.chardevs, id)
		return nil, nil
	})
	f.on("qom-set", func(a map[string]any) (any, error) {
		id := strings.TrimPrefix(a["path"].(string), "/objects/")
		if f.objects[id] == nil {
			return nil, &qmp.Error{Class: "DeviceNotFound", Desc: "Device '" + id + "' not found"}
		}
		f.objects[id]["status"] = a["value"]
		return nil, nil
	})
	return f, f.Client(t.Context())
}

func (f *fakeQEMU) on(command string, fn func(args map[string]any) (any, error)) {
	f.Handle(command, func(raw json.RawMessage) (any, error) {
		var args map[string]any
		if raw != nil {
			if err := json.Unmarshal(raw, &args); err != nil {
				return nil, err
			}
		}
		f.mu.Lock()
		defer f.mu.Unlock()
		return fn(args)
	})
}

// failOn makes object-add and chardev-add fail for one id.
func (f *fakeQEMU) failOn(id string) {
	add := func(a map[string]any) (string, error) {
		got := a["id"].(string)
		if got == id {
			return "", errors.New("made to fail")
		}
		return got, nil
	}
	f.on("object-add", func(a map[string]any) (any, error) {
		got, err := add(a)
		if err == nil {
			f.objects[got] = a
		}
		return nil, err
	})
	f.on("chardev-add", func(a map[string]any) (any, error) {
		got, err := add(a)
		if err == nil {
			f.chardevs[got] = "tcp:somewhere"
		}
		return nil, err
	})
}

// state is what would be left over.
func (f *fakeQEMU) state() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var l []string
	for id := range f.objects {
		l = append(l, "object "+id)
	}
	for id := range f.chardevs {
		l = append(l, "chardev "+id)
	}
	slices.Sort(l)
	return l
}

// since renders the changing commands after the first n, one a line with sorted arguments.
func (f *fakeQEMU) since(t *testing.T, n int) string {
	t.Helper()
	var out bytes.Buffer
	for _, call := range f.Calls()[n:] {
		if call.Command == "qom-list" || call.Command == "query-chardev" {
			continue
		}
		var args any
		if err := json.Unmarshal(call.Args, &args); err != nil {
			t.Fatal(err)
		}
		line, err := json.Marshal(args) // sorts
		if err != nil {
			t.Fatal(err)
		}
		out.WriteString(call.Command + " " + string(line) + "\n")
	}
	return out.String()
}
