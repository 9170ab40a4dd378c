package state

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"time"
)

func now() time.Time { return time.Now().UTC().Round(0) }

func newID() string { return rand.Text() }

// An envelope is {"crc":"xxxxxxxx","value":…}, byte for byte. bbolt has checksums for its two meta pages only; without our own a flipped bit in a
// generation would be read as another generation. The checksum covers bucket and key as well, as a value in a wrong place is no better.
const (
	envHead = `{"crc":"`
	envMid  = `","value":`
	envTail = `}`
	envCRC  = len(envHead)
	envFrom = envCRC + 8 + len(envMid)
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func checksum(bucket, key string, value []byte) string {
	h := crc32.New(castagnoli)
	_, _ = fmt.Fprintf(h, "%s\x00%s\x00", bucket, key)
	_, _ = h.Write(value)
	return fmt.Sprintf("%08x", h.Sum32())
}

func seal(bucket, key string, value []byte) []byte {
	out := make([]byte, 0, envFrom+len(value)+len(envTail))
	out = append(out, envHead...)
	out = append(out, checksum(bucket, key, value)...)
	out = append(out, envMid...)
	out = append(out, value...)
	return append(out, envTail...)
}

// unseal returns the value, which shares memory with raw.
func unseal(bucket, key string, raw []byte) ([]byte, error) {
	if len(raw) < envFrom+len(envTail) || string(raw[:envCRC]) != envHead || string(raw[envCRC+8:envFrom]) != envMid || !bytes.HasSuffix(raw, []byte(envTail)) {
		return nil, errors.New("no envelope around the value")
	}
	value := raw[envFrom : len(raw)-len(envTail)]
	if want, got := string(raw[envCRC:envCRC+8]), checksum(bucket, key, value); want != got {
		return nil, fmt.Errorf("checksum is %s, should be %s", got, want)
	}
	return value, nil
}

// mustJSON is for our own plain structs, whose encoding can't fail.
func mustJSON(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return b
}

func equalJSON(a, b any) (bool, error) {
	x, err := json.Marshal(a)
	if err != nil {
		return false, err
	}
	y, err := json.Marshal(b)
	return bytes.Equal(x, y), err
}

// previous is what a record was before an update: the stored bytes, and what this version made of them.
type previous struct {
	raw     []byte
	decoded any
}

// carry adds to after what stored has and this version doesn't know. before is the re-encoding of the decoded stored value: what is
// missing there is unknown. Objects are followed by key, arrays only while they keep their length.
func carry(stored, before, after []byte) ([]byte, error) {
	if bytes.Equal(stored, before) {
		return after, nil
	}
	switch kind(stored) {
	case '{':
		if kind(before) != '{' || kind(after) != '{' {
			return after, nil
		}
		return carryObject(stored, before, after)
	case '[':
		if kind(before) != '[' || kind(after) != '[' {
			return after, nil
		}
		var s, b, a []json.RawMessage
		if err := errors.Join(json.Unmarshal(stored, &s), json.Unmarshal(before, &b), json.Unmarshal(after, &a)); err != nil {
			return nil, err
		}
		if len(s) != len(b) || len(s) != len(a) {
			return after, nil
		}
		for i := range a {
			merged, err := carry(s[i], b[i], a[i])
			if err != nil {
				return nil, err
			}
			a[i] = merged
		}
		return json.Marshal(a)
	default:
		return after, nil
	}
}

func carryObject(stored, before, after []byte) ([]byte, error) {
	var s, b, a map[string]json.RawMessage
	if err := errors.Join(json.Unmarshal(stored, &s), json.Unmarshal(before, &b), json.Unmarshal(after, &a)); err != nil {
		return nil, err
	}
	changed := false
	for k, sv := range s {
		bv, known := b[k]
		av, kept := a[k]
		switch {
		case !known && !kept:
			a[k], changed = sv, true
		case known && kept:
			merged, err := carry(sv, bv, av)
			if err != nil {
				return nil, err
			}
			if !bytes.Equal(merged, av) {
				a[k], changed = merged, true
			}
		}
	}
	if !changed {
		return after, nil
	}
	return json.Marshal(a)
}

func kind(raw []byte) byte {
	if len(raw) == 0 {
		return 0
	}
	return raw[0]
}
