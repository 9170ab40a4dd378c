package lab

import (
	"fmt"
	"net"
	"time"

	"golang.org/x/sys/unix"
)

// tcpState is what the client's kernel knows of a connection: whether it waits for the guest's acknowledgements, for its data or for a timer of its own.
func tcpState(c net.Conn) string {
	tcp, ok := c.(*net.TCPConn)
	if !ok {
		return ""
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return err.Error()
	}
	var info *unix.TCPInfo
	var cc string
	cerr := raw.Control(func(fd uintptr) {
		info, err = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
		cc, _ = unix.GetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION)
	})
	if cerr != nil || err != nil {
		return fmt.Sprint(cerr, err)
	}
	age := func(ms uint32) time.Duration { return time.Duration(ms) * time.Millisecond }
	return fmt.Sprintf("state %d, last sent %v ago, last received %v ago, last acknowledged %v ago; %d packets not acknowledged, %d lost, %d bytes not sent; window %d here, %d there; "+
		"rto %v, backoff %d, %d retransmitted in all, rtt %v, cwnd %d, %s at %d bytes/s",
		info.State, age(info.Last_data_sent), age(info.Last_data_recv), age(info.Last_ack_recv), info.Unacked, info.Lost, info.Notsent_bytes, info.Rcv_wnd, info.Snd_wnd,
		time.Duration(info.Rto)*time.Microsecond, info.Backoff, info.Total_retrans, time.Duration(info.Rtt)*time.Microsecond, info.Snd_cwnd, cc, info.Pacing_rate)
}
