package state

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	bolt "go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
)

// Buckets. A slash separates a bucket from the one it lies in.
const (
	bucketMeta    = "meta"    // schema, node
	bucketVMs     = "vms"     // name → VM
	bucketIntents = "intents" // number → Intent that is open
	bucketEnded   = "ended"   // number → Intent that has ended
	bucketHistory = "history" // one bucket for each VM: number → Entry
	bucketPorts   = "ports"   // VM → portRecord
)

func (tx *Tx) bucket(path string) *bolt.Bucket {
	parts := strings.Split(path, "/")
	b := tx.tx.Bucket([]byte(parts[0]))
	for _, p := range parts[1:] {
		if b == nil {
			return nil
		}
		b = b.Bucket([]byte(p))
	}
	return b
}

func (tx *Tx) makeBucket(path string) (*bolt.Bucket, error) {
	parts := strings.Split(path, "/")
	b, err := tx.tx.CreateBucketIfNotExists([]byte(parts[0]))
	for _, p := range parts[1:] {
		if err != nil {
			break
		}
		b, err = b.CreateBucketIfNotExists([]byte(p))
	}
	return b, err
}

func (tx *Tx) has(bucket, key string) bool {
	b := tx.bucket(bucket)
	return b != nil && b.Get([]byte(key)) != nil
}

// get decodes a value and returns its stored JSON, which is valid until the end of the transaction.
func (tx *Tx) get(bucket, key string, out any) ([]byte, error) {
	b := tx.bucket(bucket)
	if b == nil {
		return nil, ErrNotFound
	}
	raw := b.Get([]byte(key))
	if raw == nil {
		return nil, ErrNotFound
	}
	return tx.decode(bucket, key, raw, out)
}

func (tx *Tx) decode(bucket, key string, raw []byte, out any) ([]byte, error) {
	value, err := unseal(bucket, key, raw)
	if err == nil {
		err = json.Unmarshal(value, out)
	}
	if err != nil {
		return nil, &CorruptError{Path: tx.s.path, Bucket: bucket, Key: key, Detail: err}
	}
	return value, nil
}

// put stores a value. With prev it keeps what the stored one has and this version doesn't know.
func (tx *Tx) put(bucket, key string, v any, prev *previous) error {
	if !tx.tx.Writable() {
		return ErrReadOnly
	}
	value, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	if prev != nil {
		before, err := json.Marshal(prev.decoded)
		if err != nil {
			return err
		}
		if value, err = carry(prev.raw, before, value); err != nil {
			return err
		}
	}
	b, err := tx.makeBucket(bucket)
	if err != nil {
		return err
	}
	sealed := seal(bucket, key, value)
	tx.account(b.Get([]byte(key)), sealed)
	return b.Put([]byte(key), sealed)
}

func (tx *Tx) delete(bucket, key string) error {
	b := tx.bucket(bucket)
	if b == nil || b.Get([]byte(key)) == nil {
		return nil
	}
	if !tx.tx.Writable() {
		return ErrReadOnly
	}
	tx.account(b.Get([]byte(key)), nil)
	return b.Delete([]byte(key))
}

// deleteBucket removes a bucket that lies in another one and has none in it.
func (tx *Tx) deleteBucket(path string) error {
	b := tx.bucket(path)
	if b == nil {
		return nil
	}
	if !tx.tx.Writable() {
		return ErrReadOnly
	}
	if err := b.ForEach(func(_, raw []byte) error { tx.account(raw, nil); return nil }); err != nil {
		return err
	}
	parent, name, _ := strings.Cut(path, "/")
	tx.dirty = true
	err := tx.bucket(parent).DeleteBucket([]byte(name))
	if errors.Is(err, bolterrors.ErrBucketNotFound) {
		return nil
	}
	return err
}

// next returns the bucket's next number. It isn't used again, not even after what had it is gone.
func (tx *Tx) next(bucket string) (uint64, error) {
	if !tx.tx.Writable() {
		return 0, ErrReadOnly
	}
	b, err := tx.makeBucket(bucket)
	if err != nil {
		return 0, err
	}
	tx.dirty = true
	return b.NextSequence()
}

// trim keeps the last values of a bucket.
func (tx *Tx) trim(bucket string, keep int) error {
	b := tx.bucket(bucket)
	if b == nil {
		return nil
	}
	c := b.Cursor()
	k, _ := c.Last()
	for n := 0; k != nil && n < keep; n++ {
		k, _ = c.Prev()
	}
	var old [][]byte // collected first: a cursor that deletes may skip its neighbour
	for ; k != nil; k, _ = c.Prev() {
		old = append(old, k)
	}
	for _, k := range old {
		tx.account(b.Get(k), nil)
		if err := b.Delete(k); err != nil {
			return err
		}
	}
	return nil
}

// children returns the names of the buckets in a bucket.
func (tx *Tx) children(bucket string) []string {
	var out []string
	b := tx.bucket(bucket)
	if b == nil {
		return nil
	}
	_ = b.ForEachBucket(func(k []byte) error {
		out = append(out, string(k))
		return nil
	})
	return out
}

// each decodes the values of a bucket in the order of their keys.
func each[T any](tx *Tx, bucket string, do func(key string, v T) error) error {
	b := tx.bucket(bucket)
	if b == nil {
		return nil
	}
	return b.ForEach(func(k, raw []byte) error {
		if raw == nil {
			return nil // a bucket
		}
		var v T
		if _, err := tx.decode(bucket, string(k), raw, &v); err != nil {
			return err
		}
		return do(string(k), v)
	})
}

// eachBack is each from the last value on, until do returns false.
func eachBack[T any](tx *Tx, bucket string, do func(key string, v T) bool) error {
	b := tx.bucket(bucket)
	if b == nil {
		return nil
	}
	c := b.Cursor()
	for k, raw := c.Last(); k != nil; k, raw = c.Prev() {
		if raw == nil {
			continue
		}
		var v T
		if _, err := tx.decode(bucket, string(k), raw, &v); err != nil {
			return err
		}
		if !do(string(k), v) {
			return nil
		}
	}
	return nil
}
