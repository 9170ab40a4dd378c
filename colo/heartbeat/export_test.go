package heartbeat

// WithoutHaste makes m send at its interval whatever is lost.
func WithoutHaste(m *Monitor) { m.noHaste = true }

// KeyedCodec gives tests of other packages the wire format.
var (
	OpenDatagram = func(key, b []byte) (sender, path string, err error) {
		d, err := newCodec(key).open(b)
		return d.sender, d.path, err
	}
)
