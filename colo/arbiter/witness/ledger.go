package witness

import (
	"slices"

	bolt "go.etcd.io/bbolt"

	"github.com/coloctl/coloctl/colo/arbiter"
	"github.com/coloctl/coloctl/colo/arbiter/internal/recordfile"
)

// page is what a node must remember about a VM between two witnesses. What it says was synced before anything that follows from it was sent
// or returned.
type page struct {
	// Seat is the newest that this node saw of the deciding witness.
	Seat sight `json:"seat"`
	// Told is the newest version of this tenure of which the other witness has heard from this node.
	Told uint64 `json:"told,omitempty"`
	// Pending are the own claims in this tenure that may be stored at the seat without this node knowing.
	Pending []arbiter.Record `json:"pending,omitempty"`
	// Given is the instance of the other witness, to which this node has promised not to use the seat. Empty: it hasn't.
	Given string `json:"given,omitempty"`
	// Seq numbers promises and withdrawals.
	Seq uint64 `json:"seq,omitempty"`
}

// expect adds a claim that is about to be sent. It returns false if it was there.
func (p *page) expect(r arbiter.Record) bool {
	r = r.Normal()
	if slices.ContainsFunc(p.Pending, r.Equal) {
		return false
	}
	p.Pending = append(p.Pending, r)
	return true
}

// resolve removes a claim whose answer has come.
func (p *page) resolve(r arbiter.Record) {
	p.Pending = slices.DeleteFunc(p.Pending, r.Equal)
}

// learn takes what the seat held, at a later moment than what is known.
func (p *page) learn(s sight) {
	if s.Since > p.Seat.Since {
		p.Pending = nil // the seat doesn't take them any more
	}
	p.Seat = s
	if r := s.Record; r != nil {
		// A claim of a generation that is there can't be stored any more.
		p.Pending = slices.DeleteFunc(p.Pending, func(c arbiter.Record) bool { return c.Generation <= r.Generation })
	}
}

// open says whether there is anything to be remembered about a VM that has no record.
func (p *page) open() bool {
	return p.Seat.Record != nil || len(p.Pending) > 0 || p.Given != ""
}

func sightOf(ans answer) sight {
	return sight{Seat: ans.Instance, Tenure: ans.Tenure, Version: ans.Version, Since: ans.Since, Record: ans.Record}
}

// follow turns to the seat of a later tenure, if the answer tells of one. What was pending at the earlier seat is void: it was adopted as it
// was seen, or never happened.
func (p *page) follow(ans answer) bool {
	next := sightOf(ans)
	if s := ans.Seen; s != nil && s.Tenure > next.Tenure {
		next = *s
	}
	if next.Tenure <= p.Seat.Tenure {
		return false
	}
	*p = page{Seat: next, Seq: p.Seq}
	return true
}

// book keeps a node's pages.
type book interface {
	load(vm string) (p page, found bool, err error)
	save(vm string, p page) error
	drop(vm string) error
	vms() ([]string, error)
	close() error
}

// ledger is a book in a file.
type ledger struct{ db *bolt.DB }

func (l *ledger) close() error { return l.db.Close() }

func openLedger(path string) (*ledger, error) {
	db, _, err := recordfile.Open(path, kindLedger, func(k, raw []byte) error {
		var p page
		return recordfile.Decode(k, raw, &p)
	})
	if err != nil {
		return nil, err
	}
	return &ledger{db: db}, nil
}

func (l *ledger) load(vm string) (p page, found bool, err error) {
	err = l.db.View(func(tx *bolt.Tx) (err error) {
		found, err = recordfile.Get(tx.Bucket(recordfile.Records), []byte(vm), &p)
		return err
	})
	return p, found, err
}

func (l *ledger) save(vm string, p page) error {
	return l.db.Update(func(tx *bolt.Tx) error { return recordfile.Put(tx.Bucket(recordfile.Records), []byte(vm), p) })
}

func (l *ledger) drop(vm string) error {
	return l.db.Update(func(tx *bolt.Tx) error { return tx.Bucket(recordfile.Records).Delete([]byte(vm)) })
}

func (l *ledger) vms() (out []string, err error) {
	err = l.db.View(func(tx *bolt.Tx) error {
		return tx.Bucket(recordfile.Records).ForEach(func(k, _ []byte) error {
			out = append(out, string(k))
			return nil
		})
	})
	return out, err
}
