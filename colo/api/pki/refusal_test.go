package pki

import (
	"context"
	"crypto/tls"
	"errors"
	"strings"
	"testing"
	"time"
)

// TestRefusalsSayWhatToDo: each way in which two hosts' certificates don't fit names the mistake and its remedy, to both of them.
func TestRefusalsSayWhatToDo(t *testing.T) {
	dir := t.TempDir()
	made := 0
	issue := func(ca string, id Identity) *Credentials {
		t.Helper()
		made++
		out := dir + "/" + id.Name + string(rune('a'+made))
		if _, err := Issue(ca, IssueOptions{Identity: id, Out: out}); err != nil {
			t.Fatal(err)
		}
		c, err := Load(Files{Identity: out + "/" + id.Name + ".pem", Trust: out + "/ca.crt"})
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	one, other := dir+"/one", dir+"/other"
	for _, ca := range []string{one, other} {
		if err := InitCA(ca, AuthorityOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	n1, n2 := Identity{Node, "n1"}, Identity{Node, "n2"}
	good, stranger, server := issue(one, n1), issue(other, n1), issue(one, n2)
	for _, c := range []struct {
		name   string
		client *Credentials
		expect Identity
		want   []string
	}{
		{"right", good, n2, nil},
		{"a peer of another name", good, Identity{Node, "n9"}, []string{"tls with node n9 at ", "node n2 answers there: correct the name or the address"}},
		{"two nodes of one name", server, n1, []string{"node n2 answers there, which is this one's own name"}},
		{"another authority", stranger, n2, []string{"of another authority than those in " + dir, "bring that ca.crt to both hosts"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			l, err := tls.Listen("tcp", "127.0.0.1:0", server.Server())
			if err != nil {
				t.Fatal(err)
			}
			done := make(chan struct{})
			go func() {
				defer close(done)
				conn, err := l.Accept()
				if err == nil {
					_, _ = conn.Write([]byte("x"))
					_ = conn.Close()
				}
			}()
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			conn, err := c.client.Dialer(c.expect, nil)(ctx, "tcp", l.Addr().String())
			if c.want == nil {
				if err != nil {
					t.Fatal(err)
				}
				_ = conn.Close()
			} else if err == nil || !errors.As(err, new(*RefusalError)) {
				t.Fatalf("no refusal: %v", err)
			}
			for _, want := range c.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%v\nlacks %q", err, want)
				}
			}
			_ = l.Close()
			<-done
		})
	}
}
