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
		db, err := bolt.Open(path, 0o600, &bolt.Options{PageSize: size, NoSync: true})
		ok(t, err)
		for round := range 40 {
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
				for range r.IntN(200) {
					key := []byte{'k', byte(r.IntN(100)), byte(r.IntN(3))}
					if r.IntN(3) == 0 {
						err = b.Delete(key)
					} else {
						err = b.Put(key, make([]byte, r.IntN(400)*r.IntN(20)))
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

// FuzzPages damages a healthy file at a place: checkPages must neither panic nor let through what bbolt then finds wrong.
func FuzzPages(f *testing.F) {
	good, err := os.ReadFile(filledFile(f))
	if err != nil {
		f.Fatal(err)
	}
	for page := range len(good) / 4096 {
		for _, at := range []int{0, 8, 10, 12, 16, 20, 24, 28, 32} {
			f.Add(uint32(page*4096+at), []byte{0xff, 0xff, 0xff, 0xff})
			f.Add(uint32(page*4096+at), []byte{1})
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
