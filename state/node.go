package state

import (
	"fmt"
	"maps"
	"time"
)

const keyNode = "node"

type nodeRecord struct {
	Name        string    `json:"name"`
	ID          string    `json:"id"`
	Created     time.Time `json:"created"`
	Incarnation uint64    `json:"incarnation"`
}

// Node says whose file this is.
type Node struct {
	Name string // Options.Node when the file was made; may be empty
	ID   string // made with the file: another one on the same host means that the state was lost
	// Incarnation counts the calls of NextIncarnation.
	Incarnation uint64
	Created     time.Time
}

// Node returns whose file this is.
func (s *Store) Node() (Node, error) {
	return read(s, func(tx *Tx) (Node, error) {
		var r nodeRecord
		_, err := tx.get(bucketMeta, keyNode, &r)
		return Node{Name: r.Name, ID: r.ID, Incarnation: r.Incarnation, Created: r.Created}, err
	})
}

// NextIncarnation counts a start of the daemon and returns the new number, from 1. Open doesn't do it by itself, so that a file can be opened on a full disk.
func (s *Store) NextIncarnation() (uint64, error) {
	var n uint64
	err := s.Do(func(tx *Tx) error {
		var old nodeRecord
		raw, err := tx.get(bucketMeta, keyNode, &old)
		if err != nil {
			return err
		}
		next := old
		next.Incarnation++
		n = next.Incarnation
		return tx.put(bucketMeta, keyNode, &next, &previous{raw: raw, decoded: &old})
	})
	return n, err
}

func (s *Store) checkNode() error {
	n, err := s.Node()
	if err != nil {
		return err
	}
	if s.opt.Node != "" && n.Name != "" && s.opt.Node != n.Name {
		return fmt.Errorf("%w: it is %s's, this node is %s", ErrOtherNode, n.Name, s.opt.Node)
	}
	return nil
}

// AllPorts returns all ports given away, by VM and use.
func (s *Store) AllPorts() (map[string]map[string]int, error) {
	return read(s, func(tx *Tx) (map[string]map[string]int, error) {
		out := map[string]map[string]int{}
		err := each(tx, bucketPorts, func(vm string, r portRecord) error {
			out[vm] = maps.Clone(r.Ports)
			return nil
		})
		return out, err
	})
}
