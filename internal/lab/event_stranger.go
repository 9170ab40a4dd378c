package lab

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/coloctl/coloctl/colo/api"
	"github.com/coloctl/coloctl/colo/api/pki"
	"github.com/coloctl/coloctl/internal/netns"
)

// An attempt is one kind of what somebody without any key can try against a TCP port. got says what he got out of it; empty is nothing.
type attempt struct {
	name string
	try  func(conn net.Conn) (got string)
}

// strangerPatience is how long he waits for an answer: far longer than any takes.
const strangerPatience = 1000 * time.Millisecond

// A stranger is a host on the LAN and on every link's network, with root's rights there and no key.
type stranger struct {
	lab  *Lab
	host *Host
	dir  string // of certificates that he has made himself

	mu    sync.Mutex
	kinds map[string]int // how often each kind of attempt was made
	got   []string
}

var strange = undisturbed("a stranger on the LAN and on the links tries what he can", func(ctx context.Context, r *Run) error {
	s, err := r.Lab.newStranger()
	if err != nil {
		return err
	}
	defer s.close()
	if err := s.tryAll(ctx); err != nil {
		return err
	}
	r.Result.Attempts, r.Result.Intrusions = ptr(len(s.kinds)), ptr(len(s.got))
	r.Tell.Say("%d kinds of attempts; what they got: %v", len(s.kinds), s.got)
	return r.protectedStill(ctx)
})

// keptOut is the check of the figures.
func keptOut(res *Result) error {
	const least = 50
	switch {
	case res.Attempts == nil || *res.Attempts < least:
		return fmt.Errorf("fewer than %d kinds of attempts were made", least)
	case *res.Intrusions > 0:
		return fmt.Errorf("a stranger succeeded %d times", *res.Intrusions)
	}
	return nil
}

func (l *Lab) newStranger() (*stranger, error) {
	host, err := newHost("stranger")
	if err != nil {
		return nil, err
	}
	s := &stranger{lab: l, host: host, dir: l.path("stranger"), kinds: map[string]int{}}
	err = errors.Join(pair(l.Topology.Client, "lan-stranger", host, lanPort), l.Topology.Client.enslave("lan-stranger", lanBridge),
		host.setAddr(lanPort, netip.MustParsePrefix("10.77.0.66/24")))
	for i, link := range l.Topology.Links {
		port := link.port("stranger")
		addr := linkAddr(i, 0)
		own := addr.Addr().As4()
		own[3] = 66
		err = errors.Join(err, pair(link.fabric, port, host, link.Name), link.fabric.enslave(port, link.Name), host.setAddr(link.Name, netip.PrefixFrom(netip.AddrFrom4(own), addr.Bits())))
	}
	// The management network's addresses are tried from the LAN: a host answers for all its addresses on every cable.
	lan, lerr := host.nl.LinkByName(lanPort)
	if err = errors.Join(err, lerr); err == nil {
		_, mgmt, perr := net.ParseCIDR(mgmtAddr(NodeNames[0]).Masked().String())
		err = errors.Join(perr, host.nl.RouteAdd(&netlink.Route{LinkIndex: lan.Attrs().Index, Dst: mgmt, Scope: netlink.SCOPE_LINK}))
	}
	ca := filepath.Join(s.dir, "ca")
	err = errors.Join(err, pki.InitCA(ca, pki.AuthorityOptions{}))
	for _, id := range identities {
		if err == nil {
			_, err = pki.Issue(ca, pki.IssueOptions{Identity: id, Out: s.dir})
		}
	}
	if err != nil {
		return nil, errors.Join(err, host.close())
	}
	return s, nil
}

func (s *stranger) close() {
	_ = errors.Join(s.host.close(), os.RemoveAll(s.dir)) // the lab's end takes what is left
}

func (s *stranger) note(kind, at, got string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.kinds[kind]++
	if got != "" {
		s.got = append(s.got, fmt.Sprintf("%s at %s: %s", kind, at, got))
	}
}

func (s *stranger) dial(ctx context.Context, addr string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, strangerPatience)
	defer cancel()
	return netns.Dial(ctx, s.host.Netns(), "tcp", addr)
}

// tryAll goes through all nodes' addresses and ports.
func (s *stranger) tryAll(ctx context.Context) error {
	var addrs, apis []string
	for _, link := range s.lab.Topology.Links {
		for _, node := range NodeNames {
			addrs = append(addrs, link.Addrs[node].Addr().String())
		}
	}
	for _, a := range addrs {
		apis = append(apis, net.JoinHostPort(a, strconv.Itoa(apiPort)))
		s.datagrams(net.JoinHostPort(a, "7788"))
	}
	for _, node := range NodeNames { // from the LAN
		apis = append(apis, hostPort(node, apiPort))
	}
	var open []string
	for _, a := range addrs {
		for port := 9000; port <= 9099; port++ { // see nodeConfig
			addr := net.JoinHostPort(a, strconv.Itoa(port))
			conn, err := s.dial(ctx, addr)
			s.note("connect to a port of replication", addr, "")
			if err == nil {
				_ = conn.Close()
				open = append(open, addr)
			}
		}
	}
	if len(open) == 0 {
		return errors.New("the stranger finds no port of the replication: the lab is not what it should be")
	}
	var wg sync.WaitGroup
	for part := range slices.Chunk(slices.Concat(nbdAttempts, streamAttempts, s.tlsAttempts()), 12) {
		wg.Go(func() {
			for _, addr := range open {
				for _, a := range part {
					s.against(ctx, a, addr)
				}
			}
		})
	}
	wg.Wait()
	return s.tryAPI(ctx, apis)
}

func (s *stranger) against(ctx context.Context, a attempt, addr string) {
	conn, err := s.dial(ctx, addr)
	if err != nil {
		s.note(a.name, addr, "")
		return
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(strangerPatience))
	s.note(a.name, addr, a.try(conn))
}

// nbdAttempts ask an NBD server for its exports, without and around TLS. The server of a protected VM is asked for its name for it by a primary's QEMU.
var nbdAttempts = func() (out []attempt) {
	const exportName = 1
	for name, option := range map[string]uint32{
		"EXPORT_NAME": exportName, "LIST": 3, "INFO": 6, "GO": 7, "STRUCTURED_REPLY": 8, "LIST_META_CONTEXT": 9, "SET_META_CONTEXT": 10, "EXTENDED_HEADERS": 11,
	} {
		for _, export := range []string{"vda", ""} {
			if export == "" && option == 3 { // it takes no name
				continue
			}
			out = append(out, attempt{fmt.Sprintf("NBD option %s of %q", name, export), func(conn net.Conn) string {
				hello := make([]byte, 18)
				if _, err := io.ReadFull(conn, hello); err != nil || string(hello[:8]) != "NBDMAGIC" {
					return "" // another service
				}
				data := []byte(export)
				switch option {
				case 6, 7:
					data = append(binary.BigEndian.AppendUint32(nil, uint32(len(export))), export+"\x00\x00"...) //nolint:gosec // short
				case 9, 10:
					data = append(binary.BigEndian.AppendUint32(nil, uint32(len(export))), export+"\x00\x00\x00\x00"...) //nolint:gosec // short
				case 3, 8, 11:
					data = nil
				}
				out := binary.BigEndian.AppendUint32([]byte("\x00\x00\x00\x03IHAVEOPT"), option)
				out = append(binary.BigEndian.AppendUint32(out, uint32(len(data))), data...) //nolint:gosec // short
				if _, err := conn.Write(out); err != nil {
					return ""
				}
				if option == exportName { // the answer is the disk's size, or the end
					n, _ := io.Copy(io.Discard, conn)
					return nothing(n == 0, "%d bytes of an export", n)
				}
				reply := make([]byte, 20)
				if _, err := io.ReadFull(conn, reply); err != nil {
					return ""
				}
				kind := binary.BigEndian.Uint32(reply[12:])
				return nothing(kind >= 1<<31, "reply %d, which is no error", kind)
			}})
		}
	}
	return out
}()

func nothing(isSo bool, format string, args ...any) string {
	if isSo {
		return ""
	}
	return fmt.Sprintf(format, args...)
}

// streamAttempts write what the services behind the ports would take from the right primary. Whoever is heard gets an answer, or packets of the guest.
var streamAttempts = func() (out []attempt) {
	frame := make([]byte, 60)
	random := make([]byte, 4096)
	_, _ = rand.Read(random)
	for name, text := range map[string][]byte{
		"nothing, and listening":      nil,
		"the header of a migration":   []byte("QEVM\x00\x00\x00\x03\x07\x00\x00\x00\x02pc"),
		"a recover command":           []byte("QEVM\x00\x00\x00\x03\x08\x00\x09\x00\x00"),
		"a frame for the mirror":      append([]byte("\x00\x00\x00\x3c"), frame...),
		"a frame with a vnet header":  append([]byte("\x00\x00\x00\x3c\x00\x00\x00\x0c"), append(make([]byte, 12), frame...)...),
		"an endless frame":            []byte("\xff\xff\xff\xff\xff\xff\xff\xff"),
		"a QMP greeting":              []byte("{\"execute\":\"qmp_capabilities\"}\n{\"execute\":\"query-status\"}\n"),
		"a monitor's command":         []byte("info status\n"),
		"an HTTP request":             []byte("GET / HTTP/1.0\r\n\r\n"),
		"random bytes":                random,
		"a VNC greeting":              []byte("RFB 003.008\n"),
		"a TLS record of another age": []byte("\x16\x03\x00\x00\x05\x01\x00\x00\x01\x00"),
		"an SSH greeting":             []byte("SSH-2.0-stranger\r\n"),
	} {
		out = append(out, attempt{"write " + name, func(conn net.Conn) string {
			if _, err := conn.Write(text); err != nil {
				return ""
			}
			got, _ := io.ReadAll(io.LimitReader(conn, 1<<16))
			got = bytes.TrimPrefix(got, []byte("NBDMAGICIHAVEOPT\x00\x03")) // a greeting that everybody gets
			for len(got) >= 5 && got[0] == 21 {                             // an alert of TLS says no
				got = got[min(len(got), 5+int(binary.BigEndian.Uint16(got[3:]))):]
			}
			return nothing(len(got) == 0, "%d bytes: %.20q", len(got), got)
		}})
	}
	return out
}()

// certificates are those that a stranger can have: none, and of an authority that he has made himself.
func (s *stranger) certificates() map[string][]tls.Certificate {
	out := map[string][]tls.Certificate{"no certificate": nil}
	for _, id := range identities {
		file := filepath.Join(s.dir, id.Name+".pem")
		if c, err := tls.LoadX509KeyPair(file, file); err == nil {
			out["an own authority's certificate of "+id.String()] = []tls.Certificate{c}
		}
	}
	return out
}

// tlsAttempts shake hands with certificates, directly and as NBD does it.
func (s *stranger) tlsAttempts() (out []attempt) {
	for name, certs := range s.certificates() {
		for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
			config := &tls.Config{Certificates: certs, InsecureSkipVerify: true, MinVersion: version, MaxVersion: version} //nolint:gosec // he takes what he gets
			shake := func(conn net.Conn) string {
				c := tls.Client(conn, config)
				if err := c.HandshakeContext(context.Background()); err != nil {
					return ""
				}
				return "TLS"
			}
			out = append(out, attempt{tls.VersionName(version) + " with " + name, shake}, attempt{"NBD STARTTLS, " + tls.VersionName(version) + " with " + name, func(conn net.Conn) string {
				hello := make([]byte, 18)
				if _, err := io.ReadFull(conn, hello); err != nil || string(hello[:8]) != "NBDMAGIC" {
					return ""
				}
				reply := make([]byte, 20)
				_, err := conn.Write([]byte("\x00\x00\x00\x03IHAVEOPT\x00\x00\x00\x05\x00\x00\x00\x00"))
				if err == nil {
					_, err = io.ReadFull(conn, reply)
				}
				if err != nil {
					return ""
				}
				return shake(conn)
			}})
		}
	}
	return out
}

// tryAPI asks for everything that the API has, without TLS, without a certificate and with those he has.
func (s *stranger) tryAPI(ctx context.Context, addrs []string) error {
	doc, err := api.Document()
	if err != nil {
		return err
	}
	var spec struct {
		Paths map[string]map[string]json.RawMessage `json:"paths"`
	}
	if err := json.Unmarshal(doc, &spec); err != nil {
		return err
	}
	var wg sync.WaitGroup
	for _, addr := range addrs {
		wg.Go(func() {
			conn, err := s.dial(ctx, addr)
			s.note("connect to the API", addr, "")
			if err != nil { // from the LAN
				return
			}
			_ = conn.Close()
			for name, certs := range s.certificates() {
				s.ask(ctx, addr, "https", name, certs, spec.Paths)
			}
			s.ask(ctx, addr, "http", "no TLS", nil, spec.Paths)
		})
	}
	wg.Wait()
	return ctx.Err()
}

func (s *stranger) ask(ctx context.Context, addr, scheme, how string, certs []tls.Certificate, paths map[string]map[string]json.RawMessage) {
	client := &http.Client{Timeout: strangerPatience, Transport: &http.Transport{
		DialContext:     func(ctx context.Context, _, addr string) (net.Conn, error) { return s.dial(ctx, addr) },
		TLSClientConfig: &tls.Config{Certificates: certs, InsecureSkipVerify: true}, //nolint:gosec // he takes what he gets
	}}
	defer client.CloseIdleConnections()
	for path, methods := range paths {
		for method := range methods {
			req, err := http.NewRequestWithContext(ctx, strings.ToUpper(method), scheme+"://"+addr+strings.NewReplacer("{vm}", VM, "{disk}", "vda", "{id}", "1").Replace(path), strings.NewReader("{}"))
			if err != nil {
				continue
			}
			got := ""
			if resp, err := client.Do(req); err == nil {
				_ = resp.Body.Close()
				// What says no before it knows who asks is no answer: 400 is TLS's, to one who speaks none.
				got = nothing(scheme == "http" && resp.StatusCode == http.StatusBadRequest, "%s", resp.Status)
			}
			s.note(fmt.Sprintf("API %s %s, %s", strings.ToUpper(method), path, how), addr, got)
		}
	}
}

// datagrams tries the heartbeats' port.
func (s *stranger) datagrams(addr string) {
	random := make([]byte, 128)
	_, _ = rand.Read(random)
	for name, text := range map[string][]byte{"an empty datagram": {}, "a random datagram": random, "a datagram of zeros": make([]byte, 128)} {
		got := ""
		err := netns.Do(s.host.Netns(), func() error {
			conn, err := (&net.Dialer{Timeout: strangerPatience}).DialContext(context.Background(), "udp", addr)
			if err != nil {
				return err
			}
			defer conn.Close()
			_ = conn.SetDeadline(time.Now().Add(strangerPatience / 5))
			if _, err := conn.Write(text); err != nil {
				return err
			}
			buf := make([]byte, 1500)
			if n, err := conn.Read(buf); err == nil {
				got = fmt.Sprintf("%d bytes", n)
			}
			return nil
		})
		if err == nil {
			s.note("heartbeat: "+name, addr, got)
		}
	}
}
