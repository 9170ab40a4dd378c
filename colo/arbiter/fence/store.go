package fence

import (
	"encoding/binary"
	"time"

	bolt "go.etcd.io/bbolt"

	"github.com/coloctl/coloctl/colo/arbiter"
	"github.com/coloctl/coloctl/colo/arbiter/internal/recordfile"
)

// kept is what a node remembers of a VM.
type kept struct {
	Record *arbiter.Record `json:"record,omitempty"`
	// Epoch counts how often the VM was forgotten: what belongs to an earlier one is void. It stays when Record goes.
	Epoch uint64 `json:"epoch,omitempty"`
	// Boot of this host during which Record was known to be the newest of both nodes.
	Boot string `json:"boot,omitempty"`
	// Offered is an own claim that the peer may have stored without this node knowing.
	Offered *arbiter.Record `json:"offered,omitempty"`
	// Forgetting: the same for a Forget.
	Forgetting bool `json:"forgetting,omitempty"`
	// Untold: the peer is a member of Record and may not know.
	Untold bool `json:"untold,omitempty"`
}

// store is a node's file. It keeps what both nodes agreed on, or what followed from a fencing.
type store struct {
	db      *bolt.DB
	session uint64 // rises with each start
}

var keySession = []byte("session")

func openStore(path string) (*store, error) {
	db, _, err := recordfile.Open(path, "fence", func(k, raw []byte) error {
		if string(k) == string(keySession) {
			return nil
		}
		var v kept
		return recordfile.Decode(k, raw, &v)
	})
	if err != nil {
		return nil, err
	}
	s := &store{db: db}
	err = db.Update(func(tx *bolt.Tx) error {
		b := tx.Bucket(recordfile.Records)
		if raw := b.Get(keySession); len(raw) == 8 {
			s.session = binary.BigEndian.Uint64(raw)
		}
		// The clock is for a file that was lost: the peer must not take what comes for old.
		s.session = max(s.session+1, uint64(max(time.Now().Unix(), 1)))
		return b.Put(keySession, binary.BigEndian.AppendUint64(nil, s.session))
	})
	if err != nil {
		_ = db.Close()
		return nil, err
	}
	return s, nil
}

func key(vm string) []byte { return []byte("vm/" + vm) }

func (s *store) load(vm string) (k kept, err error) {
	return k, s.db.View(func(tx *bolt.Tx) error {
		_, err := recordfile.Get(tx.Bucket(recordfile.Records), key(vm), &k)
		return err
	})
}

func (s *store) save(vm string, k kept) error {
	return s.db.Update(func(tx *bolt.Tx) error {
		return recordfile.Put(tx.Bucket(recordfile.Records), key(vm), k)
	})
}

// untold lists the VMs whose peer is still to be told.
func (s *store) untold() (out []string, err error) {
	return out, s.db.View(func(tx *bolt.Tx) error {
		return tx.Bucket(recordfile.Records).ForEach(func(k, raw []byte) error {
			if string(k) == string(keySession) {
				return nil
			}
			var v kept
			if err := recordfile.Decode(k, raw, &v); err != nil {
				return err
			}
			if v.Untold {
				out = append(out, string(k[len("vm/"):]))
			}
			return nil
		})
	})
}
