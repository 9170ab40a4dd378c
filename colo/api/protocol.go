package api

import (
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/coloctl/coloctl/colo"
)

// What nodes say to each other has a version, so that hosts can be upgraded one after the other. Each side says which one it speaks and which is the
// oldest it still understands; they get along when neither is below the other's oldest. Fields that the other side doesn't know are left unread, so a
// new one needs no new version: that is raised when an old node would do the wrong thing without understanding. The VM's spec is read strictly
// all the same: two copies of one machine must not be made from different halves of it.
const (
	protocol       = 1
	protocolOldest = 1
	protocolHeader = "Coloctl-Protocol" // "2" or "2; oldest 1"; without it the version is 1
)

// speaks is what one node understands.
type speaks struct{ version, oldest int }

var ours = speaks{protocol, protocolOldest}

func (s speaks) String() string { return fmt.Sprintf("%d; oldest %d", s.version, s.oldest) }

// spoken reads the header of the other side. One that can't be read is of a version that nobody knows here.
func spoken(h http.Header) (speaks, error) {
	text := h.Get(protocolHeader)
	if text == "" {
		return speaks{1, 1}, nil
	}
	var s speaks
	if _, err := fmt.Sscanf(text, "%d; oldest %d", &s.version, &s.oldest); err == nil && s.oldest <= s.version {
		return s, nil
	}
	if v, err := strconv.Atoi(text); err == nil {
		return speaks{v, v}, nil
	}
	return s, fmt.Errorf("%w: it says it speaks %q", colo.ErrPeerProtocol, text)
}

// peerApart is a peer whose last call was not understood, and why.
type peerApart struct {
	node string
	err  error
}

// apart is those of all peers. Its methods may be called concurrently.
type apart struct {
	mu  sync.Mutex
	all []peerApart // by the name of the node
}

// note is how the last call of a peer was understood.
func (a *apart) note(node string, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	at, known := slices.BinarySearchFunc(a.all, node, func(p peerApart, node string) int { return strings.Compare(p.node, node) })
	switch {
	case known && err == nil:
		a.all = slices.Delete(a.all, at, at+1)
	case known:
		a.all[at].err = err
	case err != nil:
		a.all = slices.Insert(a.all, at, peerApart{node, err})
	}
}

func (a *apart) list() []peerApart {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.all)
}

// understands says why two nodes don't get along: who is to be upgraded.
func (s speaks) understands(h http.Header) error {
	there, err := spoken(h)
	switch {
	case err != nil:
		return err
	case there.version < s.oldest:
		return fmt.Errorf("%w: the peer speaks protocol %d, this node understands %d to %d: upgrade the peer", colo.ErrPeerProtocol, there.version, s.oldest, s.version)
	case s.version < there.oldest:
		return fmt.Errorf("%w: the peer understands protocol %d to %d, this node speaks %d: upgrade this node", colo.ErrPeerProtocol, there.oldest, there.version, s.version)
	}
	return nil
}
