package state

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	bolt "go.etcd.io/bbolt"
	"pgregory.net/rapid"
)

// rewrite changes a closed file as another version of this package would.
func rewrite(t *testing.T, path string, change func(tx *Tx) error) {
	t.Helper()
	db, err := bolt.Open(path, 0o600, nil)
	ok(t, err)
	s := &Store{db: db, path: path}
	ok(t, s.Do(change))
	ok(t, db.Close())
}

func putRaw(tx *Tx, bucket, key, value string) error {
	return tx.put(bucket, key, json.RawMessage(value), nil)
}

func TestNewerSchema(t *testing.T) {
	path := filled(t)
	rewrite(t, path, func(tx *Tx) error {
		// A newer major may have values that we take for damaged; they aren't to be looked at.
		if err := putRaw(tx, bucketVMs, "db", `[1,2]`); err != nil {
			return err
		}
		return putRaw(tx, bucketMeta, keySchema, `{"major":2,"minor":5,"more":true}`)
	})
	before := readFile(t, path)
	_, err := Open(path, nil)
	var se *SchemaError
	if !errors.As(err, &se) || !errors.Is(err, ErrNewerSchema) || se.Found != (Version{2, 5}) || se.Path != path {
		t.Errorf("%v", err)
	}
	if !bytes.Equal(before, readFile(t, path)) {
		t.Error("the file changed")
	}
}

// A newer minor added fields at all depths, and a bucket. We read it, change what we know, and lose nothing of what we don't.
func TestNewerMinor(t *testing.T) {
	path := filled(t)
	newer := Version{current.version.Major, current.version.Minor + 3}
	rewrite(t, path, func(tx *Tx) error {
		for _, kv := range [][3]string{
			{bucketMeta, keySchema, fmt.Sprintf(`{"major":%d,"minor":%d}`, newer.Major, newer.Minor)},
			{bucketMeta, "cluster", `"blue"`},
			{bucketMeta, keyNode, `{"name":"","id":"I","created":"2026-01-01T00:00:00Z","incarnation":4,"rack":7}`},
			{"leases", "x", `{"until":5}`},
			{bucketVMs, "db", `{"name":"db","id":"D","phase":"solo","generation":3,"color":"red","disks":{"vda":{"generation":2,"in_sync":true,"crypt":{"key":1}},` +
				`"vdb":{"generation":2,"in_sync":true,"crypt":2}},"instance":{"pid":5,"start_ticks":1,"dir":"d","qmp":"q","rescue":"r","cgroup":"g"},"updated":"2026-01-01T00:00:00Z"}`},
			{bucketIntents, numberKey(1), `{"id":1,"vm":"db","plan":"p","steps":[{"name":"a","host":"h0"},{"name":"b","host":"h1"}],"begun":"2026-01-01T00:00:00Z","who":"me"}`},
			{bucketPorts, "db", `{"ports":{"nbd":19000},"v6":true}`},
		} {
			if err := putRaw(tx, kv[0], kv[1], kv[2]); err != nil {
				return err
			}
		}
		return nil
	})
	s := openStore(t, path, nil)
	ok(t, s.Update("db", func(v *VM) error {
		v.Generation, v.Reason = 4, "changed"
		v.Disks["vda"] = Disk{Generation: 4}
		delete(v.Disks, "vdb")
		v.Instance.PID = 6
		return nil
	}))
	ok(t, s.StepDone(1, 1, nil))
	ok(t, s.End(1, OutcomeDone))
	_, err := s.NextIncarnation()
	ok(t, err)
	_, err = s.Ports("db", []string{"mirror"}, nil)
	ok(t, err)
	raw := func(bucket, key string) string {
		t.Helper()
		var v json.RawMessage
		ok(t, s.Read(func(tx *Tx) error { _, err := tx.get(bucket, key, &v); return err }))
		return string(v)
	}
	for _, c := range []struct{ bucket, key, has, hasnt string }{
		{bucketMeta, keySchema, fmt.Sprintf(`"minor":%d`, newer.Minor), ""},
		{bucketMeta, "cluster", `"blue"`, ""},
		{bucketMeta, keyNode, `"rack":7`, ""},
		{bucketMeta, keyNode, `"incarnation":5`, ""},
		{"leases", "x", `"until":5`, ""},
		{bucketVMs, "db", `"color":"red"`, "vdb"},
		{bucketVMs, "db", `"crypt":{"key":1}`, `"crypt":2`},
		{bucketVMs, "db", `"cgroup":"g"`, `"pid":5`},
		{bucketEnded, numberKey(1), `"who":"me"`, ""},
		{bucketEnded, numberKey(1), `"host":"h0"`, ""},
		{bucketEnded, numberKey(1), `"host":"h1"`, ""},
		{bucketPorts, "db", `"v6":true`, ""},
		{bucketPorts, "db", `"mirror":19001`, ""},
	} {
		got := raw(c.bucket, c.key)
		if !strings.Contains(got, c.has) || c.hasnt != "" && strings.Contains(got, c.hasnt) {
			t.Errorf("%s/%s: %s\nmust have %s, must not have %s", c.bucket, c.key, got, c.has, c.hasnt)
		}
	}
	v, err := s.Get("db")
	ok(t, err)
	if v.Generation != 4 || v.Disks["vda"].InSync || v.Instance.PID != 6 {
		t.Errorf("%+v", v)
	}
	// Removed as a whole, an object takes along what isn't known of it.
	ok(t, s.Update("db", func(v *VM) error { v.Instance = nil; return nil }))
	if got := raw(bucketVMs, "db"); strings.Contains(got, "cgroup") {
		t.Error(got)
	}
}

// Whatever is known or not: what carry returns decodes as what was asked for, and has all of stored's unknown keys.
func TestCarry(t *testing.T) {
	type known struct {
		A int            `json:"a,omitempty"`
		B string         `json:"b"`
		M map[string]int `json:"m,omitempty"`
	}
	gen := rapid.Custom(func(t *rapid.T) known {
		return known{rapid.Int().Draw(t, "a"), rapid.String().Draw(t, "b"), rapid.MapOf(rapid.StringMatching("[x-z]"), rapid.Int()).Draw(t, "m")}
	})
	rapid.Check(t, func(t *rapid.T) {
		old, next := gen.Draw(t, "old"), gen.Draw(t, "next")
		extra := rapid.MapOfN(rapid.StringMatching("u[a-c]"), rapid.Int(), 0, 3).Draw(t, "extra")
		var doc map[string]any
		before, _ := json.Marshal(old)
		_ = json.Unmarshal(before, &doc)
		for k, v := range extra {
			doc[k] = v
		}
		if old.A != 0 {
			doc["a"] = old.A // not as a float
		}
		if len(old.M) > 0 {
			doc["m"] = old.M
		}
		stored, _ := json.Marshal(doc)
		after, _ := json.Marshal(next)
		got, err := carry(stored, before, after)
		if err != nil {
			t.Fatal(err)
		}
		var back known
		if err := json.Unmarshal(got, &back); err != nil {
			t.Fatal(err)
		}
		if same, _ := equalJSON(back, next); !same {
			t.Fatalf("%s: is %+v, not %+v", got, back, next)
		}
		var all map[string]json.RawMessage
		_ = json.Unmarshal(got, &all)
		for k, v := range extra {
			if string(all[k]) != fmt.Sprint(v) {
				t.Fatalf("%s of %s was lost in %s", k, stored, got)
			}
		}
	})
}

// future is a schema after the present one, for the tests of migration.
func future(fail error) schema {
	v11 := Version{current.version.Major, current.version.Minor + 1}
	v2 := Version{current.version.Major + 1, 0}
	return schema{version: v2, verify: func(bucket string, value []byte) error {
		if bucket == bucketVMs && !bytes.Contains(value, []byte(`"zone"`)) {
			return errors.New("a VM without zone")
		}
		return nil
	}, migrations: []migration{
		{current.version, v11, func(tx *Tx) error { return putRaw(tx, "zones", "z", `{}`) }},
		{v11, v2, func(tx *Tx) error {
			err := each(tx, bucketVMs, func(name string, v map[string]any) error {
				v["zone"] = "z"
				return tx.put(bucketVMs, name, v, nil)
			})
			return errors.Join(err, fail)
		}},
	}}
}

func TestMigration(t *testing.T) {
	path := filled(t)
	opt, err := (*Options)(nil).withDefaults()
	ok(t, err)
	old := openStore(t, path, nil)
	want := contents(t, old)
	ok(t, old.Close())

	// One that fails leaves the file at the old version.
	mine := errors.New("mine")
	_, err = open(path, opt, future(mine))
	wantErr(t, err, mine)
	old = openStore(t, path, nil)
	if got := contents(t, old); got != want {
		t.Errorf("after a migration that failed: %s", got)
	}
	ok(t, old.Close())

	s, err := open(path, opt, future(nil))
	ok(t, err)
	var v map[string]any
	ok(t, s.Read(func(tx *Tx) error { _, err := tx.get(bucketVMs, "db", &v); return err }))
	if v["zone"] != "z" {
		t.Errorf("%v", v)
	}
	ok(t, s.Close())
	_, err = Open(path, nil)
	wantErr(t, err, ErrNewerSchema)

	// The copy is the old file, complete.
	s = openStore(t, BackupPath(path, current.version), nil)
	if got := contents(t, s); got != want {
		t.Errorf("copy: %s", got)
	}
	ok(t, s.Close())
	// A second open has nothing to migrate.
	s, err = open(path, opt, future(nil))
	ok(t, err)
	ok(t, s.Close())
	entries, err := os.ReadDir(filepath.Dir(path))
	ok(t, err)
	if len(entries) != 2 {
		t.Errorf("left in the folder: %v", entries)
	}

	// Without a way there: refused.
	gap := future(nil)
	gap.migrations = gap.migrations[1:]
	path = filled(t)
	_, err = open(path, opt, gap)
	wantErr(t, err, ErrInvalid)
	old = openStore(t, path, nil)
	ok(t, old.Close())
}
