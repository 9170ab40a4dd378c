package qmp

import (
	"encoding/json"
	"net"
	"strconv"
)

// InetAddr is a TCP address. It is marshalled as the members of QEMU's
// InetSocketAddress, in which the port is a string.
type InetAddr struct {
	Host  string
	Port  int
	MPTCP bool
}

type wireInet struct {
	Type      string `json:"type,omitempty"`
	Transport string `json:"transport,omitempty"`
	Host      string `json:"host"`
	Port      string `json:"port"`
	MPTCP     bool   `json:"mptcp,omitempty"`
}

func (a InetAddr) wire() wireInet {
	return wireInet{Host: a.Host, Port: strconv.Itoa(a.Port), MPTCP: a.MPTCP}
}

// String returns host:port.
func (a InetAddr) String() string { return net.JoinHostPort(a.Host, strconv.Itoa(a.Port)) }

// MarshalJSON writes {"host":…, "port":"…"}.
func (a InetAddr) MarshalJSON() ([]byte, error) { return json.Marshal(a.wire()) }

// Flat returns the address as QEMU's SocketAddress, {"type":"inet","host":…}:
// what the server of an NBD node takes.
func (a InetAddr) Flat() json.RawMessage {
	w := a.wire()
	w.Type = "inet"
	return mustMarshal(w)
}

// Legacy returns the address as QEMU's SocketAddressLegacy,
// {"type":"inet","data":{"host":…}}: what nbd-server-start and chardevs take.
func (a InetAddr) Legacy() json.RawMessage {
	return mustMarshal(legacyAddr{Type: "inet", Data: a.wire()})
}

// UnixLegacy returns a unix socket's path as QEMU's SocketAddressLegacy.
func UnixLegacy(path string) json.RawMessage {
	return mustMarshal(legacyAddr{Type: "unix", Data: struct {
		Path string `json:"path"`
	}{path}})
}

type legacyAddr struct {
	Type string `json:"type"`
	Data any    `json:"data"`
}

// mustMarshal is for structs of strings, numbers and bools, which can't fail.
func mustMarshal(v any) json.RawMessage {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return b
}

// Channel is where a migration goes to or comes from.
type Channel struct {
	Inet *InetAddr
	Unix string // a path, used if Inet is nil
}

func (ch Channel) wire() map[string]any {
	var addr any
	if ch.Inet != nil {
		w := ch.Inet.wire()
		w.Type, w.Transport = "inet", "socket"
		addr = w
	} else {
		addr = map[string]string{"transport": "socket", "type": "unix", "path": ch.Unix}
	}
	return map[string]any{"channel-type": "main", "addr": addr}
}

// uri is the address in the one form that QEMU knows before 8.2.
func (ch Channel) uri() string {
	switch {
	case ch.Inet == nil:
		return "unix:" + ch.Unix
	case ch.Inet.MPTCP:
		return "tcp:" + ch.Inet.String() + ",mptcp=on"
	default:
		return "tcp:" + ch.Inet.String()
	}
}
