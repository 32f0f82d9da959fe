//! RTMP: the server side of a publisher's connection.
