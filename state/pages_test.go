package state

import (
	"bytes"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	bolt "go.etcd.io/bbolt"
)

// What bbolt writes must pass, whatever its shape: many and few values, deep and inline buckets, long values, and pages that became free.
func TestPagesOfHealthyFiles(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 5))
	path := filepath.Join(t.TempDir(), "x.db")
	for _, size := range []int{1024, 4096, 16384} {
		_ = os.Remove(path)
		db, err := bolt.Open(path, 0o600, &bolt.Options{PageSize: size, NoSync: true, NoGrowSync: true})
		ok(t, err)
		for round := range 15 {
			ok(t, db.Update(func(tx *bolt.Tx) error {
				b, err := tx.CreateBucketIfNotExists([]byte{byte('a' + r.IntN(4))})
				if err != nil {
					return err
				}
				if r.IntN(2) == 0 {
					if b, err = b.CreateBucketIfNotExists([]byte("deep")); err != nil {
						return err
					}
				}
				for range r.IntN(100) {
					key := []byte{'k', byte(r.IntN(100)), byte(r.IntN(3))}
					if r.IntN(3) == 0 {
						err = b.Delete(key)
					} else {
						err = b.Put(key, make([]byte, r.IntN(200)*r.IntN(20)))
					}
					if err != nil {
						return err
					}
				}
				return nil
			}))
			if err := checkPages(readFile(t, path)); err != nil {
				t.Fatalf("page size %d, round %d: %v", size, round, err)
			}
		}
		ok(t, db.Close())
	}
}

// Each field that bbolt would follow blindly.
func TestPagesRefuse(t *testing.T) {
	good := readFile(t, filled(t))
	m, err := findMeta(good)
	ok(t, err)
	// The pages of one kind that are in use, by walking as checkPages does.
	c := &pageCheck{file: good, meta: m, seen: make([]bool, m.pages)}
	ok(t, c.tree(m.root, nil, nil))
	pages := map[uint16][]int{flagFreelist: {int(m.freelist)}}
	for id, used := range c.seen {
		if used {
			kind := order.Uint16(good[id*m.pageSize+8:])
			pages[kind] = append(pages[kind], id)
		}
	}
	for name, d := range map[string]struct {
		kind uint16
		at   int
		with uint32
	}{
		"another page's number":     {flagLeaf, 0, 77},
		"unknown type":              {flagLeaf, 8, 0x00010040},
		"a list in the tree":        {flagBranch, 8, 0x00010010},
		"more elements than fit":    {flagLeaf, 8, 0xffff0000 | flagLeaf},
		"no children":               {flagBranch, 8, flagBranch},
		"endless overflow":          {flagLeaf, 12, 0xffffffff},
		"type of an element":        {flagLeaf, 16, 9},
		"position of a key":         {flagLeaf, 20, 0x10000000},
		"position before":           {flagLeaf, 20, 1},
		"size of a key":             {flagLeaf, 24, 0xffffffff},
		"size of a value":           {flagLeaf, 28, 0x7fffffff},
		"position of a child's key": {flagBranch, 16, 0xfffffff0},
		"size of a child's key":     {flagBranch, 20, 0x10000010},
		"child that doesn't exist":  {flagBranch, 24, 0x00ffffff},
		"child that is its parent":  {flagBranch, 24, uint32(pages[flagBranch][0])},
		"more free than fit":        {flagFreelist, 8, 0xfffe0000 | flagFreelist},
		"free and used":             {flagFreelist, 16, uint32(pages[flagLeaf][0])},
		"free beyond the end":       {flagFreelist, 16, 0x00ffffff},
	} {
		bad := bytes.Clone(good)
		order.PutUint32(bad[pages[d.kind][0]*m.pageSize+d.at:], d.with)
		if checkPages(bad) == nil {
			t.Errorf("%s: not noticed", name)
		}
	}
}

// FuzzPages damages a healthy file at a place: checkPages must neither panic nor let through what bbolt then finds wrong.
func FuzzPages(f *testing.F) {
	good, err := os.ReadFile(filledFile(f))
	if err != nil {
		f.Fatal(err)
	}
	for page := range len(good) / 4096 {
		for _, at := range []int{0, 8, 12, 16, 20, 28} {
			f.Add(uint32(page*4096+at), []byte{0xff, 0xff, 0xff, 0xff})
		}
	}
	path := filepath.Join(f.TempDir(), "fuzz.db")
	f.Fuzz(func(t *testing.T, at uint32, with []byte) {
		bad := bytes.Clone(good)
		copy(bad[int(at)%len(bad):], with)
		if checkPages(bad) != nil {
			return
		}
		ok(t, os.WriteFile(path, bad, 0o600))
		db, err := bolt.Open(path, 0o600, &bolt.Options{ReadOnly: true, PreLoadFreelist: true})
		ok(t, err)
		defer func() { _ = db.Close() }()
		ok(t, db.View(func(tx *bolt.Tx) error {
			var first error
			for e := range tx.Check() {
				if first == nil {
					first = e
				}
			}
			return first
		}))
	})
}
