package colo

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
)

func TestKeyIsNotPrinted(t *testing.T) {
	a, b := newKey(), newKey()
	if len(a) != keySize || bytes.Equal(a, b) {
		t.Fatal("two keys are equal")
	}
	e := Endpoint{Host: "10.0.0.1", Key: a}
	var log bytes.Buffer
	slog.New(slog.NewJSONHandler(&log, nil)).Info("x", "key", a)
	for _, text := range []string{fmt.Sprint(e), fmt.Sprintf("%+v %#v %x %q %d", e, e, a, a, a), fmt.Sprint(&e, PrepareReply{Endpoint: e}), log.String()} {
		for _, form := range []string{string(a), hex.EncodeToString(a), fmt.Sprintf("%d", []byte(a)), fmt.Sprintf("%d, %d", a[0], a[1])} {
			if strings.Contains(text, form) {
				t.Errorf("a key is printed: %s", text)
			}
		}
	}
	// What the API carries must hold it.
	text, err := json.Marshal(e)
	if err != nil {
		t.Fatal(err)
	}
	var back Endpoint
	if err := json.Unmarshal(text, &back); err != nil || !bytes.Equal(back.Key, a) {
		t.Fatalf("%v: %s", err, text)
	}
}

func TestNodesAgreeOnEncryption(t *testing.T) {
	for _, c := range []struct{ here, there bool }{{false, false}, {true, true}, {true, false}, {false, true}} {
		n := &Node{cfg: NodeConfig{Plain: c.here}}
		err := n.compare(NodeInfo{Plain: c.there})
		var mismatch *PeerMismatchError
		if errors.As(err, &mismatch) == (c.here == c.there) {
			t.Errorf("%+v: %v", c, err)
		}
		if err != nil && err.Error() != "encryption of replication differs: "+encryption(c.here)+" here, "+encryption(c.there)+" on the peer" {
			t.Errorf("%+v: %v", c, err)
		}
	}
}
